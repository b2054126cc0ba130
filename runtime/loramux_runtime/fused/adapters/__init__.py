"""Each adapter method has a folder here; `methods.METHODS` has the methods by name."""
