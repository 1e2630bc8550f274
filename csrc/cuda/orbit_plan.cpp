#include "orbit_plan.h"

#include <algorithm>
#include <numeric>
#include <stdexcept>

#include "grid_index.h"

namespace equikern {
namespace {

constexpr int64_t kRunBytes = 16 * 1024;     // staged by a block of runs, where planes are smaller
constexpr int64_t kSharedLimit = 48 * 1024;  // what every GPU gives a block without asking
constexpr int64_t kSmallPlane = 4 * 1024;    // smaller planes leave a tile partly empty
constexpr int64_t kEnoughBlocks = 512;       // about four for each multiprocessor of a large GPU

FastDivider divider(int64_t d) {
  FastDivider by;
  by.divisor = static_cast<uint32_t>(d);
  for (by.shift = 0; (int64_t{1} << by.shift) < d;) ++by.shift;
  by.multiplier = static_cast<uint32_t>((((uint64_t{1} << by.shift) - d) << 32) / d + 1);
  return by;
}

// Leading dims without those of size 1, neighbours that are one dim in both tensors merged.
void merge_lead(OrbitPlan& p, const std::vector<int64_t>& sizes, const std::vector<int64_t>& x_strides,
                const std::vector<int64_t>& out_strides, size_t n_lead) {
  for (size_t d = 0; d < n_lead; ++d) {
    const int64_t size = sizes[d], x = x_strides[d], out = out_strides[d + 1];
    const int last = p.n_lead - 1;
    if (size == 1) continue;
    if (last >= 0 && p.x_lead[last] == x * size && p.out_lead[last] == out * size) {
      p.lead[last] *= size;
      p.x_lead[last] = x;
      p.out_lead[last] = out;
      continue;
    }
    if (p.n_lead == kMaxLead) throw std::invalid_argument("orbit: more than 8 leading dims that cannot be merged");
    p.lead[p.n_lead] = size;
    p.x_lead[p.n_lead] = x;
    p.out_lead[p.n_lead++] = out;
  }
}

// A plane stored column by column is the transposed plane stored row by row.
void prefer_rows(OrbitPlan& p) {
  if (p.x_col != 1 && p.x_row == 1) {
    std::swap(p.x_row, p.x_col);
    std::swap(p.H, p.W);
    for (int g = 0; g < p.n_views; ++g) {
      const unsigned c = p.code[g];
      p.code[g] = (~c & kTranspose) | (c & kReverseH ? kReverseW : 0) | (c & kReverseW ? kReverseH : 0);
    }
  }
  if (p.out_col != 1 && p.out_row == 1) {
    std::swap(p.out_row, p.out_col);
    std::swap(p.out_H, p.out_W);
    for (int g = 0; g < p.n_views; ++g) p.code[g] ^= kTranspose;
  }
}

bool starts_on_16_bytes(const void* pointer) { return reinterpret_cast<uintptr_t>(pointer) % 16 == 0; }

// Whether planes start, and every view's, on multiples of `lanes` elements.
bool aligned_strides(const OrbitPlan& p, int64_t lanes, int skipped_lead) {
  bool all = starts_on_16_bytes(p.x) && starts_on_16_bytes(p.out) && p.out_view % lanes == 0;
  for (int d = 0; d < p.n_lead; ++d)
    all = all && (d == skipped_lead || (p.x_lead[d] % lanes == 0 && p.out_lead[d] % lanes == 0));
  return all;
}

// The channels of a channels-last pixel move together: vectors of 16 bytes take the place of single elements.
void widen_elements(OrbitPlan& p) {
  const int inner = p.order[0];
  const int64_t lanes = 16 / p.element_size;
  if (inner >= p.n_lead || p.x_lead[inner] != 1 || p.out_lead[inner] != 1 || p.lead[inner] % lanes != 0) return;
  for (const int64_t stride : {p.x_row, p.x_col, p.out_row, p.out_col})
    if (stride % lanes != 0) return;
  if (!aligned_strides(p, lanes, inner)) return;
  p.lead[inner] /= lanes;
  p.planes /= lanes;
  for (int64_t* stride : {&p.x_row, &p.x_col, &p.out_row, &p.out_col, &p.out_view}) *stride /= lanes;
  for (int d = 0; d < p.n_lead; ++d)
    if (d != inner) p.x_lead[d] /= lanes, p.out_lead[d] /= lanes;
  p.element_size = 16;
}

void plan_strided(OrbitPlan& p) {
  const int n = p.n_lead + 2;
  const auto stride = [&](int d) {
    const int64_t s = std::abs(d < p.n_lead ? p.x_lead[d] : d == p.n_lead ? p.x_row : p.x_col);
    return s == 0 ? INT64_MAX : s;  // an expanded dim is read again and again: outermost
  };
  std::iota(p.order, p.order + n, int8_t{0});
  std::stable_sort(p.order, p.order + n, [&](int a, int b) { return stride(a) < stride(b); });
  widen_elements(p);
  p.kernel = OrbitKernel::strided;
  p.blocks = (p.planes * p.H * p.W + kThreads - 1) / kThreads;
}

void plan_runs(OrbitPlan& p) {
  const int64_t plane_bytes = p.H * p.W * p.element_size;
  int64_t count = std::max<int64_t>(1, kRunBytes / plane_bytes);
  while (count > 1 && p.planes / count < kEnoughBlocks) count /= 2;
  p.kernel = OrbitKernel::runs;
  p.planes_per_block = static_cast<int32_t>(count);
  p.shared_bytes = static_cast<int32_t>(count * plane_bytes + 16);  // and the distance to a 16-byte boundary
  p.blocks = (p.planes + count - 1) / count;
  p.by_plane = divider(p.H * p.W);
  p.by_out_W = divider(p.out_W);
}

void plan_tiles(OrbitPlan& p) {
  const int64_t side = p.element_size <= 2 ? 64 : p.element_size <= 8 ? 32 : 16;  // Tiles<E>::kSide
  p.kernel = OrbitKernel::tiles;
  p.blocks = p.planes * ((p.H + side - 1) / side) * ((p.W + side - 1) / side);
}

}  // namespace

OrbitPlan plan_orbit(const void* x, void* out, const std::vector<int64_t>& sizes, const std::vector<int64_t>& x_strides,
                     const std::vector<int64_t>& out_strides, const std::vector<uint8_t>& codes, int64_t element_size) {
  const size_t rank = sizes.size();
  if (rank < 2 || x_strides.size() != rank || out_strides.size() != rank + 1)
    throw std::invalid_argument("orbit: sizes, x_strides and out_strides do not belong together");
  if (codes.empty() || codes.size() > kMaxViews) throw std::invalid_argument("orbit: expected 1 to 64 views");
  if (element_size < 1 || element_size > 16 || (element_size & (element_size - 1)))
    throw std::invalid_argument("orbit: expected elements of 1, 2, 4, 8 or 16 bytes");
  for (const void* pointer : {x, static_cast<const void*>(out)})
    if (reinterpret_cast<uintptr_t>(pointer) % element_size != 0)
      throw std::invalid_argument("orbit: expected tensors that start on a multiple of their element size");
  OrbitPlan p{};
  p.x = static_cast<const unsigned char*>(x);
  p.out = static_cast<unsigned char*>(out);
  p.element_size = static_cast<uint8_t>(element_size);
  p.n_views = static_cast<int32_t>(codes.size());
  std::copy(codes.begin(), codes.end(), p.code);
  p.H = sizes[rank - 2], p.W = sizes[rank - 1];
  p.planes = 1;
  for (size_t d = 0; d + 2 < rank; ++d) p.planes *= sizes[d];
  if (p.planes * p.H * p.W == 0) return p;
  p.out_H = p.H, p.out_W = p.W;
  if (codes[0] & kTranspose) std::swap(p.out_H, p.out_W);
  for (const uint8_t code : codes)
    if (p.H != p.W && (code & kTranspose) != (codes[0] & kTranspose))
      throw std::invalid_argument("orbit: some views of a rectangle are transposed and others are not");
  // The stride of a dim of size 1 means nothing: the one of gapless rows lets the fast kernels run.
  p.out_view = out_strides[0];
  p.x_col = p.W == 1 ? 1 : x_strides[rank - 1];
  p.x_row = p.H == 1 ? p.W * p.x_col : x_strides[rank - 2];
  p.out_col = p.out_W == 1 ? 1 : out_strides[rank];
  p.out_row = p.out_H == 1 ? p.out_W * p.out_col : out_strides[rank - 1];
  merge_lead(p, sizes, x_strides, out_strides, rank - 2);
  prefer_rows(p);
  if (p.x_col != 1 || p.out_col != 1) {
    plan_strided(p);
    return p;
  }
  const int64_t lanes = 16 / element_size, plane = p.H * p.W, plane_bytes = plane * element_size;
  p.vectors = p.W % lanes == 0 && p.out_W % lanes == 0 && p.x_row % lanes == 0 && p.out_row % lanes == 0 &&
              aligned_strides(p, lanes, -1);
  const bool gapless = p.x_row == p.W && p.out_row == p.out_W && p.n_lead <= 1 &&
                       (p.n_lead == 0 || (p.x_lead[0] == plane && p.out_lead[0] == plane));
  if (gapless && plane_bytes <= kSharedLimit - 16 && (!p.vectors || plane_bytes < kSmallPlane))
    plan_runs(p);
  else
    plan_tiles(p);
  return p;
}

}  // namespace equikern
