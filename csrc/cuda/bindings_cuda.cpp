// The part of equikern._C that needs a CUDA build.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "orbit_plan.h"

namespace py = pybind11;

namespace equikern {

void bind_cuda(py::module_& m) {
  m.def(
      "cuda_orbit",
      [](uintptr_t x, uintptr_t out, const std::vector<int64_t>& sizes, const std::vector<int64_t>& x_strides,
         const std::vector<int64_t>& out_strides, const std::vector<uint8_t>& codes, int64_t element_size, int device,
         uintptr_t stream) {
        const py::gil_scoped_release unlocked;
        const auto plan = plan_orbit(reinterpret_cast<const void*>(x), reinterpret_cast<void*>(out), sizes, x_strides,
                                     out_strides, codes, element_size);
        launch_orbit(plan, device, reinterpret_cast<void*>(stream));
      },
      py::arg("x"), py::arg("out"), py::arg("sizes"), py::arg("x_strides"), py::arg("out_strides"), py::arg("codes"),
      py::arg("element_size"), py::arg("device"), py::arg("stream"),
      "Every view of the planes at x, written to out; pointers and the stream as integers, strides in elements.");
}

}  // namespace equikern
