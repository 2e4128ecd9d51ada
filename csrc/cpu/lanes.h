// Loops over the lanes of a vector.
#pragma once

// Stands before a loop over a constant number of lanes. Such a loop is short enough for GCC to
// unroll it before its vectoriser has seen it; this keeps it whole until then.
#define MDCP_LANES _Pragma("GCC unroll 1")
