"""What the dataset holds and what is drawn from it: index, tables, frozen lists, batches, ledger."""
