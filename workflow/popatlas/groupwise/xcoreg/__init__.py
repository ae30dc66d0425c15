"""X-CoReg: register a group of images of any contrasts to their common anatomy, and get its classes for free."""
