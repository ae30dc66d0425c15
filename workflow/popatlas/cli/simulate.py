"""stub until the phantom lands."""
def add_parser(s): s.add_parser("simulate")
