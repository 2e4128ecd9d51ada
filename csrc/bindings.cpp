// The only file that knows Python: integer addresses in, calls with the interpreter lock released.
#include <pybind11/pybind11.h>

#include "native.h"

namespace py = pybind11;
using Address = std::uintptr_t;

namespace {

// The memory of a tensor: its data_ptr() as T*.
template <class T>
T* at(Address address) {
    return reinterpret_cast<T*>(address);
}

}  // namespace

PYBIND11_MODULE(_native, module) {
    using release = py::call_guard<py::gil_scoped_release>;

    module.def("simd_best", &mdcp::simd_best, release());
#ifdef MDCP_WITH_CUDA
    module.attr("with_cuda") = true;
    module.def("cuda_device_count", &mdcp::cuda_device_count, release());
#else
    module.attr("with_cuda") = false;
    module.def("cuda_device_count", [] { return 0; });
#endif
}
