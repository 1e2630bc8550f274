#include "row_plan.h"

#include <stdexcept>

namespace equikern {
namespace cuda {
namespace {

int64_t whole_vectors(int64_t bytes) { return (bytes + 15) / 16 * 16; }

void check(const RowCall& c) {
  const size_t rank = c.sizes.size();
  const bool backward = c.grad;
  if (rank < 1 || c.y_strides.size() != rank + 1 || c.out_strides.size() != rank + backward ||
      c.grad_strides.size() != rank * backward || c.n_views < 1 || c.moved < 0 || (c.positions && !c.sources))
    throw std::invalid_argument("expected sizes, strides and sources that belong together");
  for (const void* pointer : {c.y, static_cast<const void*>(c.out), c.grad})
    if (reinterpret_cast<uintptr_t>(pointer) % c.element_size != 0)
      throw std::invalid_argument("expected tensors that start on a multiple of their element size");
}

// Leading dims without those of size 1, neighbours that are one dim in all tensors merged; false if too many remain.
bool merge_rows(RowPlan& p, const RowCall& call) {
  const bool backward = call.grad;
  p.rows = 1;
  for (size_t d = 0; d + 1 < call.sizes.size(); ++d) {
    const int64_t size = call.sizes[d], y = call.y_strides[d + 1], out = call.out_strides[d + backward];
    const int64_t grad = backward ? call.grad_strides[d] : 0;
    p.rows *= size;
    if (size == 1) continue;
    const int last = p.n_lead - 1;
    const bool joins = last >= 0 && p.y.lead[last] == y * size && p.out.lead[last] == out * size &&
                       p.grad.lead[last] == grad * size;
    if (!joins && p.n_lead == kMaxLead) return false;
    if (!joins) p.lead[p.n_lead++] = 1;
    p.lead[p.n_lead - 1] *= size;
    p.y.lead[p.n_lead - 1] = y, p.out.lead[p.n_lead - 1] = out, p.grad.lead[p.n_lead - 1] = grad;
  }
  return true;
}

}  // namespace

bool make_row_plan(const RowCall& call, RowPlan& p) {
  check(call);
  p = RowPlan{};
  const int64_t V = call.sizes.back(), wide = call.element_size == 8 ? 8 : 4;
  p.y.data = const_cast<unsigned char*>(static_cast<const unsigned char*>(call.y));
  p.out.data = static_cast<unsigned char*>(call.out);
  p.grad.data = const_cast<unsigned char*>(static_cast<const unsigned char*>(call.grad));
  p.lse = call.lse, p.positions = call.positions, p.sources = call.sources;
  p.n_views = call.n_views;
  p.y.view = call.y_strides[0];
  if (call.grad) p.out.view = call.out_strides[0];
  if (!merge_rows(p, call)) return false;
  const auto gaps = [&](const std::vector<int64_t>& strides) { return !strides.empty() && strides.back() != 1; };
  if (V > 1 && (gaps(call.y_strides) || gaps(call.out_strides) || gaps(call.grad_strides))) return false;
  // For each view: what its entries are multiplied with, the statistics of the threads and of a warp, the row. Of a
  // gradient the sums of the threads and of a warp, the rows of the view and of the mean's gradient.
  const bool backward = call.grad;
  const int64_t staged = backward ? 2 : p.n_views, scales = backward ? 0 : p.n_views * 4 * wide;
  const int64_t lanes = (kThreads + kWarp) * wide * (backward ? 1 : 2 * p.n_views);
  const int64_t run = whole_vectors(V * call.element_size) + 16;  // room for the distance to a 16-byte boundary
  if (V == 0 || scales + lanes + staged * run > call.shared_limit) return false;
  p.V = static_cast<int32_t>(V);
  p.moved = static_cast<int32_t>(call.moved);
  p.lanes_start = static_cast<int32_t>(scales);
  p.rows_start = static_cast<int32_t>(scales + lanes);
  p.run_bytes = static_cast<int32_t>(run);
  p.shared_bytes = static_cast<int32_t>(scales + lanes + staged * run);
  p.blocks = backward ? p.rows * p.n_views : p.rows;
  return true;
}

}  // namespace cuda
}  // namespace equikern
