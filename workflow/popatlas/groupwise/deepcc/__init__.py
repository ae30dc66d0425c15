"""Deep combined computing (DeepCC): one network registers a group of contrasts and segments each of them.

X. Luo, X. Zhuang, IEEE Transactions on Pattern Analysis and Machine Intelligence 2023;45(7):9206-9224,
doi:10.1109/TPAMI.2022.3225418.
"""
