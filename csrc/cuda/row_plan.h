// How a call on rows of logits is laid out: a block has a row of every view, or one view's for a gradient. Host code
// without CUDA headers.
#pragma once

#include "plan.h"

namespace equikern {
namespace cuda {

// A tensor whose rows have no gaps; strides count elements.
struct RowSide {
  unsigned char* data;
  int64_t view;
  int64_t lead[kMaxLead];
};

// Everything a kernel needs. Entry i of view g of the mean is y[g]'s at the place that `sources` has for it.
struct RowPlan {
  RowSide y, out, grad;      // without data: no gradient is asked for
  void* lse;                 // (views, rows), in the accumulator's type
  const int32_t* positions;  // (moved): the entries that some view moves; null: all of them, or none
  const int32_t* sources;    // (views, moved), or (views, V) without positions; null: nothing moves
  int64_t lead[kMaxLead];    // merged leading dims
  int64_t rows;              // their product
  int32_t n_lead, n_views, V, moved;
  int32_t lanes_start, rows_start, run_bytes;  // bytes of shared memory behind the views' scales; to the next row
  int32_t shared_bytes;
  int64_t blocks;
};

// A call of softmax_mean as Python describes it. Sizes: (*lead, V); strides of y with the axis of the views. With `grad`,
// of the mean, softmax_mean_backward: out is y's gradient, its strides have that axis, too.
struct RowCall {
  const void* y = nullptr;
  void* out = nullptr;
  void* lse = nullptr;
  const void* grad = nullptr;
  std::vector<int64_t> sizes, y_strides, out_strides, grad_strides;
  const int32_t* positions = nullptr;
  const int32_t* sources = nullptr;
  int64_t moved = 0;
  int n_views = 0;
  int64_t element_size = 0;
  int64_t shared_limit = 0;  // bytes of shared memory that a block may have
};

// Merges dims; false where rows have gaps or do not fit into shared memory. rows is 0 if there is nothing to do. Throws
// std::invalid_argument where the arguments do not belong together.
bool make_row_plan(const RowCall& call, RowPlan& plan);

// The most shared memory that a block may have on a device, and the launches; see plan.h.
int64_t shared_limit(int device);
void launch_softmax_mean_backward(const RowPlan& plan, int dtype, bool log, int device, void* stream);
void launch_softmax_mean(const RowPlan& plan, int dtype, bool log, int device, void* stream);

}  // namespace cuda
}  // namespace equikern
