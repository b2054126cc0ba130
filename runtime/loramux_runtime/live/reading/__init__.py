"""This room reads the rows of jobs beside training, in processes of their own.

Whatever a data file or a tokenizer does there (hang, crash, eat memory) is the job's own affair:
training goes on.
"""
