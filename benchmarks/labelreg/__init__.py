"""LabelReg on pairs of prostate MR and ultrasound that it has not seen, beside what needs no training."""
