"""DynMoLE (arXiv 2504.00661) has hybrid routing by Tsallis entropy."""
