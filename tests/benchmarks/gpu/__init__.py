"""Everything that needs a GPU, as one resumable script: `python -m gpu OUT` (or `make gpu`).

Needs torch 2.11 or later, transformers 5.17 or later and the checkout; PEFT and pytest are used
where they are there.
"""
