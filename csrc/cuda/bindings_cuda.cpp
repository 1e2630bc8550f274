// The part of equikern._C that needs a CUDA build. Pointers and streams are integers, strides count elements. Each
// function returns False, having done nothing, where there is no kernel for the layout.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "dtypes.h"
#include "row_plan.h"

namespace py = pybind11;

namespace equikern {
namespace cuda {
namespace {

using Ints = std::vector<int64_t>;
using Codes = std::vector<uint8_t>;

template <class T>
T* at(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

// `weight_dims` and `index_dims` leading dims of x have weights and an index of their own.
bool orbit(uintptr_t x, uintptr_t out, Ints sizes, Ints x_strides, Ints out_strides, Codes codes, int64_t element_size,
           int dtype, double scale, uintptr_t weights, int weight_dims, uintptr_t index, int index_dims, int device,
           uintptr_t stream) {
  const py::gil_scoped_release unlocked;
  Call call{Operator::orbit, at<void>(x), at<void>(out), nullptr, std::move(sizes), std::move(x_strides),
            std::move(out_strides), {}, std::move(codes), element_size, scale};
  call.weights = at<void>(weights), call.weight_dims = weight_dims;
  call.index = at<int64_t>(index), call.index_dims = index_dims;
  call.moves_bits = scale == 1 && !weights;
  Plan plan;
  if (!make_plan(call, plan)) return false;
  if (plan.blocks == 0) return true;
  if (call.moves_bits)
    launch_orbit(plan, device, at<void>(stream));
  else
    launch_scaled_orbit(plan, dtype, device, at<void>(stream));
  return true;
}

bool select(uintptr_t y, uintptr_t out, Ints sizes, Ints y_strides, Ints out_strides, Codes codes, int64_t element_size,
            uintptr_t index, int index_dims, uintptr_t scores, bool scores_double, bool minimum, int device,
            uintptr_t stream) {
  const py::gil_scoped_release unlocked;
  Call call{Operator::select, at<void>(y), at<void>(out), nullptr, std::move(sizes), std::move(y_strides),
            std::move(out_strides), {}, std::move(codes), element_size};
  call.index = at<int64_t>(index), call.index_dims = index_dims;
  call.scores = at<void>(scores), call.scores_double = scores_double, call.minimum = minimum;
  Plan plan;
  if (!make_plan(call, plan)) return false;
  if (plan.blocks) launch_select(plan, device, at<void>(stream));
  return true;
}

bool sum(uintptr_t y, uintptr_t out, Ints sizes, Ints y_strides, Ints out_strides, Codes codes, int dtype, double scale,
         uintptr_t weights, int weight_dims, bool normalized, int device, uintptr_t stream) {
  const py::gil_scoped_release unlocked;
  Call call{Operator::sum, at<void>(y), at<void>(out), nullptr, std::move(sizes), std::move(y_strides),
            std::move(out_strides), {}, std::move(codes), element_size(Dtype(dtype)), scale};
  call.weights = at<void>(weights), call.weight_dims = weight_dims, call.normalized = normalized;
  Plan plan;
  if (!make_plan(call, plan)) return false;
  if (plan.blocks) launch_sum(plan, dtype, device, at<void>(stream));
  return true;
}

// `allocate` gives the address of so many elements of the accumulator's type on the device, which live until the end.
bool orbit_dot(uintptr_t x, uintptr_t y, uintptr_t out, uintptr_t dots, Ints sizes, Ints x_strides, Ints y_strides,
               Ints out_strides, Codes codes, int dtype, uintptr_t weights, int weight_dims, const py::function& allocate,
               int device, uintptr_t stream) {
  Call call{Operator::dots, at<void>(x), at<void>(out), at<void>(y), std::move(sizes), std::move(x_strides),
            std::move(out_strides), std::move(y_strides), std::move(codes), element_size(Dtype(dtype))};
  call.weights = at<void>(weights), call.weight_dims = weight_dims;
  Plan plan;
  if (!make_plan(call, plan) || plan.blocks == 0) return false;
  plan.partial = at<void>(allocate(plan.n_views * plan.blocks).cast<uintptr_t>());
  plan.dots = at<void>(dots);
  const py::gil_scoped_release unlocked;
  launch_dots(plan, dtype, device, at<void>(stream));
  return true;
}

// positions (moved) and sources (n_views, moved) list the entries that some view moves; without positions, all of them.
bool softmax_mean(uintptr_t y, uintptr_t out, uintptr_t lse, Ints sizes, Ints y_strides, Ints out_strides, int n_views,
                  uintptr_t positions, uintptr_t sources, int64_t moved, int dtype, bool log, int device, uintptr_t stream) {
  const py::gil_scoped_release unlocked;
  const RowCall call{at<void>(y), at<void>(out), at<void>(lse), nullptr, std::move(sizes), std::move(y_strides),
                     std::move(out_strides), {}, at<int32_t>(positions), at<int32_t>(sources), moved, n_views,
                     element_size(Dtype(dtype)), shared_limit(device)};
  RowPlan plan;
  if (!make_row_plan(call, plan)) return false;
  if (plan.rows) launch_softmax_mean(plan, dtype, log, device, at<void>(stream));
  return true;
}

bool softmax_mean_backward(uintptr_t grad, uintptr_t y, uintptr_t lse, uintptr_t out, Ints sizes, Ints grad_strides,
                           Ints y_strides, Ints out_strides, int n_views, uintptr_t positions, uintptr_t sources,
                           int64_t moved, int dtype, bool log, int device, uintptr_t stream) {
  const py::gil_scoped_release unlocked;
  const RowCall call{at<void>(y), at<void>(out), at<void>(lse), at<void>(grad), std::move(sizes), std::move(y_strides),
               std::move(out_strides), std::move(grad_strides), at<int32_t>(positions), at<int32_t>(sources), moved,
               n_views, element_size(Dtype(dtype)), shared_limit(device)};
  RowPlan plan;
  if (!make_row_plan(call, plan)) return false;
  if (plan.rows) launch_softmax_mean_backward(plan, dtype, log, device, at<void>(stream));
  return true;
}

}  // namespace
}  // namespace cuda

void bind_cuda(py::module_& m) {
  m.def("cuda_orbit", &cuda::orbit);
  m.def("cuda_select", &cuda::select);
  m.def("cuda_sum", &cuda::sum);
  m.def("cuda_orbit_dot", &cuda::orbit_dot);
  m.def("cuda_softmax_mean", &cuda::softmax_mean);
  m.def("cuda_softmax_mean_backward", &cuda::softmax_mean_backward);
}

}  // namespace equikern
