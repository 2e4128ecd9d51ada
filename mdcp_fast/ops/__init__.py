"""The kernels, one file per op: arguments are checked here, the work is done in the native core."""
