"""DynMoLE (arXiv 2504.00661): hybrid routing by Tsallis entropy."""
