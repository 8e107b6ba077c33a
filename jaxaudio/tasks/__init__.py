"""What a trained run can do: one file per verb of sample.py, each with NEEDS, Options and perform."""
