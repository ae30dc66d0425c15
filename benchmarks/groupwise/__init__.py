"""X-CoReg beside other ways to register a group."""
