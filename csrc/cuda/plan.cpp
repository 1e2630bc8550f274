#include "plan.h"

#include <algorithm>
#include <numeric>
#include <stdexcept>

#include "grid_index.h"

namespace equikern {
namespace cuda {
namespace {

constexpr int64_t kRunBytes = 47 * 1024;     // staged by a block of runs, where planes are smaller: what it does once is little
constexpr int64_t kSharedLimit = 48 * 1024;  // what every GPU gives a block without asking
constexpr int64_t kSmallPlane = 4 * 1024;    // smaller planes leave a tile partly empty
constexpr int64_t kLeastRun = 1024;          // shorter runs leave most of a block's threads idle
constexpr int64_t kEnoughBlocks = 512;       // about four for each multiprocessor of a large GPU
constexpr int64_t kDotBytes = (kThreads + kDotLanes) * 8;  // BlockSums<double>::kBytesPerView

FastDivider divider(int64_t d) { return {static_cast<uint32_t>(d), static_cast<uint32_t>(UINT32_MAX / d)}; }

// The tensors of a plan, but the result of a call that wants only dots.
struct Sides {
  Side* side[3];
  int count = 0;
  Side** begin() { return side; }
  Side** end() { return side + count; }
};

Sides sides(Plan& p) {
  Sides all;
  all.side[all.count++] = &p.x;
  for (Side* s : {&p.out, &p.y})
    if (s->data) all.side[all.count++] = s;
  return all;
}

// Leading dims without those of size 1, neighbours that are one dim in all tensors merged; false if too many remain.
bool merge_lead(Plan& p, const std::vector<int64_t>& sizes, const Call& call, bool x_has_views, bool out_has_views) {
  const size_t n = sizes.size() - 2;
  for (size_t d = 0; d < n; ++d) {
    if (sizes[d] == 1) continue;
    const auto stride = [&](const Side* s) {
      return s == &p.x ? call.x_strides[d + x_has_views] : s == &p.y ? call.y_strides[d + 1] : call.out_strides[d + out_has_views];
    };
    bool joins = p.n_lead > 0;
    for (Side* s : sides(p)) joins = joins && s->lead[p.n_lead - 1] == stride(s) * sizes[d];
    if (!joins && p.n_lead == kMaxLead) return false;
    if (!joins) p.lead[p.n_lead++] = 1;
    p.lead[p.n_lead - 1] *= sizes[d];
    for (Side* s : sides(p)) s->lead[p.n_lead - 1] = stride(s);
  }
  return true;
}

// A plane stored column by column is the transposed plane stored row by row.
void prefer_rows(Plan& p) {
  if (p.x.col != 1 && p.x.row == 1) {
    std::swap(p.x.row, p.x.col);
    std::swap(p.H, p.W);
    for (int g = 0; g < p.n_views; ++g) {
      const unsigned c = p.code[g];
      p.code[g] = (~c & kTranspose) | (c & kReverseH ? kReverseW : 0) | (c & kReverseW ? kReverseH : 0);
    }
  }
  const Side& first = p.out.data ? p.out : p.y;
  if (first.col != 1 && first.row == 1) {
    for (Side* s : {&p.out, &p.y}) std::swap(s->row, s->col);
    std::swap(p.out_H, p.out_W);
    for (int g = 0; g < p.n_views; ++g) p.code[g] ^= kTranspose;
  }
}

bool starts_on_16_bytes(const void* pointer) { return reinterpret_cast<uintptr_t>(pointer) % 16 == 0; }

// Whether planes start, and every view's, on multiples of `lanes` elements.
bool aligned_strides(Plan& p, int64_t lanes, int skipped_lead) {
  for (const Side* s : sides(p)) {
    if (!starts_on_16_bytes(s->data) || s->view % lanes != 0) return false;
    for (int d = 0; d < p.n_lead; ++d)
      if (d != skipped_lead && s->lead[d] % lanes != 0) return false;
  }
  return true;
}

// The channels of a channels-last pixel move together: vectors of 16 bytes take the place of single elements.
void widen_elements(Plan& p) {
  const int inner = p.order[0];
  const int64_t lanes = 16 / p.element_size;
  if (inner >= p.n_lead || p.x.lead[inner] != 1 || p.out.lead[inner] != 1 || p.lead[inner] % lanes != 0) return;
  for (const int64_t stride : {p.x.row, p.x.col, p.out.row, p.out.col})
    if (stride % lanes != 0) return;
  if (!aligned_strides(p, lanes, inner)) return;
  p.lead[inner] /= lanes;
  p.planes /= lanes;
  for (int64_t* stride : {&p.x.row, &p.x.col, &p.out.row, &p.out.col, &p.out.view}) *stride /= lanes;
  for (int d = 0; d < p.n_lead; ++d)
    if (d != inner) p.x.lead[d] /= lanes, p.out.lead[d] /= lanes;
  p.element_size = 16;
}

void plan_strided(Plan& p) {
  const int n = p.n_lead + 2;
  const auto stride = [&](int d) {
    const int64_t s = std::abs(d < p.n_lead ? p.x.lead[d] : d == p.n_lead ? p.x.row : p.x.col);
    return s == 0 ? INT64_MAX : s;  // an expanded dim is read again and again: outermost
  };
  std::iota(p.order, p.order + n, int8_t{0});
  std::stable_sort(p.order, p.order + n, [&](int a, int b) { return stride(a) < stride(b); });
  widen_elements(p);
  p.layout = Layout::strided;
  p.blocks = (p.planes * p.H * p.W + kThreads - 1) / kThreads;
}

// Whether the views are different and a group: with two of them the one that shows what both do one after the other.
bool is_group(const Plan& p) {
  unsigned present = 0;  // a bit for each of the eight codes
  for (int g = 0; g < p.n_views; ++g) {
    if (present >> p.code[g] & 1) return false;
    present |= 1u << p.code[g];
  }
  constexpr int kSide = 4;  // of a plane in which all codes show different points at (0, 1)
  for (int g = 0; g < p.n_views; ++g) {
    for (int h = 0; h < p.n_views; ++h) {
      const Point first = source_point(p.code[h], 0, 1, kSide, kSide);
      const Point both = source_point(p.code[g], first.row, first.col, kSide, kSide);
      bool found = false;
      for (unsigned code = 0; code < 8; ++code) {
        const Point one = source_point(code, 0, 1, kSide, kSide);
        found = found || ((present >> code & 1) && one.row == both.row && one.col == both.col);
      }
      if (!found) return false;
    }
  }
  return true;
}

// Where the sets of pixels that the group joins are found.
void plan_corner(Plan& p) {
  unsigned present = 0;
  for (int g = 0; g < p.n_views; ++g) present |= 1u << p.code[g];
  const auto has = [&](unsigned code) { return (present >> code & 1) != 0; };
  const bool across = has(kReverseW), down = has(kReverseH), half_turn = has(kReverseH | kReverseW);
  const int64_t half_H = (p.H + 1) / 2, half_W = (p.W + 1) / 2;
  const bool turns = has(kTranspose | kReverseH);
  p.box_H = static_cast<int32_t>(down || half_turn ? half_H : p.H);
  p.box_W = static_cast<int32_t>(across || turns ? half_W : p.W);
  if (turns && across) {
    p.corner = Corner::eighths;
    p.box_H = static_cast<int32_t>((half_W + 1) / 2), p.box_W = static_cast<int32_t>(half_W + 1);
  } else if (turns) {
    p.corner = Corner::quarters;
  } else {
    p.corner = p.n_views == (across ? 2 : 1) * (down ? 2 : 1) ? Corner::whole : Corner::asked;
  }
  const int64_t box = int64_t{p.box_H} * p.box_W;
  p.box_planes = static_cast<int32_t>(std::max<int64_t>(1, kThreads / box));
  p.by_box = divider(box);
  p.by_box_W = divider(p.box_W);
}

// Bytes from one staged row to the next: as in memory; but where columns are read and written again, rows of whole
// vectors lie an odd number of 16 bytes apart, so that a column meets at most four times in a bank.
int64_t staged_row(const Plan& p) {
  const int64_t row = p.W * p.element_size;
  return p.invariant && p.vectors && row % 32 == 0 ? row + 16 : row;
}

// How many runs of one block are staged, and the bytes in front of them and behind.
struct Staging {
  int64_t runs, before, behind;
};

Staging staging(const Plan& p, Operator op) {
  const int64_t views = p.n_views * kViewBytes;
  if (op == Operator::sum) return {p.x.view ? p.n_views : 1, views, 0};
  return {1, views, op == Operator::dots ? p.n_views * kDotBytes : 0};
}

// A whole number of 16 bytes, and room for the distance to a 16-byte boundary.
int64_t run_bytes(int64_t bytes) { return (bytes + 15) / 16 * 16 + 16; }

bool plan_runs(Plan& p, Operator op) {
  const Staging s = staging(p, op);
  const int64_t row_bytes = staged_row(p), plane_bytes = p.H * row_bytes;
  const int64_t fixed = s.before + s.behind;
  if (fixed + s.runs * run_bytes(plane_bytes) > kSharedLimit) return false;
  const int64_t room = std::min(kRunBytes, kSharedLimit - fixed - s.runs * (run_bytes(1) - 1));
  int64_t count = std::min(std::max<int64_t>(1, room / (plane_bytes * s.runs)), p.planes_per_column);
  // Few planes that share weights make short runs: no use of a block.
  if (p.planes_per_column < p.planes && count * plane_bytes * s.runs < kLeastRun) return false;
  while (count > 1 && p.planes / count < kEnoughBlocks) count = (count + 1) / 2;
  p.layout = Layout::runs;
  p.planes_per_block = static_cast<int32_t>(count);
  p.staged_start = static_cast<int32_t>(s.before);
  p.run_bytes = static_cast<int32_t>(run_bytes(count * plane_bytes));
  p.shared_bytes = static_cast<int32_t>(fixed + s.runs * p.run_bytes);
  p.blocks_per_column = (p.planes_per_column + count - 1) / count;
  p.blocks = p.planes / p.planes_per_column * p.blocks_per_column;
  p.row_bytes = static_cast<int32_t>(row_bytes);
  p.plane_bytes = static_cast<int32_t>(plane_bytes);
  p.by_row = divider(std::max<int64_t>(1, p.W * p.element_size / 16));
  for (int g = 0; g < p.n_views; ++g) {
    const int size = p.element_size;
    const LinearView view = linear_view(p.code[g], static_cast<int>(p.H), static_cast<int>(p.W), p.row_bytes / size);
    p.views[g] = {view.origin * size, view.down * size, view.right * size};
    if (op != Operator::dots && !p.invariant)  // for both elements of a pair, counted from column 1: see Places
      p.views[g].origin = static_cast<int>((p.views[g].origin - p.views[g].right) * 0x10001u);
  }
  if (p.invariant) plan_corner(p);
  constexpr int64_t kWarps = kThreads / kWarp;
  p.by_parts = divider(s.runs < kWarps ? kWarps / s.runs : 1);
  p.by_plane = divider(p.H * p.W);
  p.by_out_W = divider(p.out_W);
  return true;
}

void plan_tiles(Plan& p, Operator op) {
  int64_t side = p.element_size <= 2 ? 64 : p.element_size <= 8 ? 32 : 16;  // kTileSide
  if (op == Operator::sum && !p.vectors) side = 32;                         // kSumTileSide
  const int64_t H = op == Operator::sum ? p.out_H : p.H, W = op == Operator::sum ? p.out_W : p.W;
  const int64_t tiles = ((H + side - 1) / side) * ((W + side - 1) / side);
  p.layout = Layout::tiles;
  p.blocks_per_column = p.planes_per_column * tiles;
  p.blocks = p.planes * tiles;
}

// Whether planes follow each other without gaps in every tensor.
bool gapless(Plan& p) {
  const int64_t plane = p.H * p.W;
  for (const Side* s : sides(p)) {
    if (s->row != (s == &p.x ? p.W : p.out_W)) return false;
    if (p.n_lead > 1 || (p.n_lead == 1 && s->lead[0] != plane)) return false;
  }
  return true;
}

void sort_views(Plan& p) {
  int n = 0;
  for (int number = 0; number < 4; ++number) {
    for (int g = 0; g < p.n_views; ++g)
      if ((p.code[g] & kTranspose ? 1 : 0) + (p.code[g] & kReverseW ? 2 : 0) == number)
        p.sorted[n++] = static_cast<uint8_t>(g);
    p.class_end[number] = static_cast<uint8_t>(n);
  }
}

int64_t product(const std::vector<int64_t>& sizes, size_t begin, size_t end) {
  return std::accumulate(sizes.begin() + begin, sizes.begin() + end, int64_t{1}, std::multiplies<>());
}

void check(const Call& c, bool x_has_views, bool out_has_views) {
  const size_t rank = c.sizes.size();
  if (rank < 2 || c.x_strides.size() != rank + x_has_views || (c.out && c.out_strides.size() != rank + out_has_views) ||
      (c.y && c.y_strides.size() != rank + 1) || c.weight_dims > int(rank) - 2 || c.index_dims > int(rank) - 2)
    throw std::invalid_argument("expected sizes and strides that belong together");
  if (c.element_size < 1 || c.element_size > 16 || (c.element_size & (c.element_size - 1)))
    throw std::invalid_argument("expected elements of 1, 2, 4, 8 or 16 bytes");
  for (const void* pointer : {c.x, static_cast<const void*>(c.out), c.y})
    if (reinterpret_cast<uintptr_t>(pointer) % c.element_size != 0)
      throw std::invalid_argument("expected tensors that start on a multiple of their element size");
  for (const uint8_t code : c.codes)
    if (c.sizes[rank - 2] != c.sizes[rank - 1] && (code & kTranspose) != (c.codes[0] & kTranspose))
      throw std::invalid_argument("some views of a rectangle are transposed and others are not");
}

}  // namespace

bool make_plan(const Call& call, Plan& p) {
  const bool x_has_views = call.op == Operator::select || call.op == Operator::sum, out_has_views = !x_has_views;
  check(call, x_has_views, out_has_views);
  const size_t rank = call.sizes.size(), views = call.codes.size();
  if (views == 0 || views > size_t(call.op == Operator::dots ? kMaxDotViews : kMaxViews)) return false;
  p = Plan{};
  p.x.data = const_cast<unsigned char*>(static_cast<const unsigned char*>(call.x));
  p.out.data = static_cast<unsigned char*>(call.out);
  p.y.data = const_cast<unsigned char*>(static_cast<const unsigned char*>(call.y));
  p.element_size = static_cast<uint8_t>(call.element_size);
  p.n_views = static_cast<int32_t>(views);
  std::copy(call.codes.begin(), call.codes.end(), p.code);
  p.H = call.sizes[rank - 2], p.W = call.sizes[rank - 1];
  p.planes = product(call.sizes, 0, rank - 2);
  if (p.planes * p.H * p.W == 0) return true;
  p.out_H = p.H, p.out_W = p.W;
  if (call.codes[0] & kTranspose) std::swap(p.out_H, p.out_W);
  // The stride of a dim of size 1 means nothing: the one of gapless rows lets the fast kernels run.
  const auto plane_strides = [rank](Side& s, const std::vector<int64_t>& strides, bool has_views, int64_t H, int64_t W) {
    if (!s.data) return;
    s.view = has_views ? strides[0] : 0;
    s.col = W == 1 ? 1 : strides[rank - 1 + has_views];
    s.row = H == 1 ? W * s.col : strides[rank - 2 + has_views];
  };
  plane_strides(p.x, call.x_strides, x_has_views, p.H, p.W);
  plane_strides(p.out, call.out_strides, out_has_views, p.out_H, p.out_W);
  plane_strides(p.y, call.y_strides, true, p.out_H, p.out_W);
  if (!merge_lead(p, call.sizes, call, x_has_views, out_has_views)) return false;
  p.weights = call.weights, p.index = call.index, p.scores = call.scores;
  p.scale = call.scale, p.normalized = call.normalized;
  p.scores_double = call.scores_double, p.minimum = call.minimum;
  p.weight_columns = product(call.sizes, 0, call.weight_dims), p.index_columns = product(call.sizes, 0, call.index_dims);
  p.planes_per_weight = p.planes / p.weight_columns, p.planes_per_index = p.planes / p.index_columns;
  p.planes_per_column = p.planes;
  if (p.weights || call.op == Operator::dots) p.planes_per_column = p.planes_per_weight;
  if (p.index) p.planes_per_column = std::min(p.planes_per_column, p.planes_per_index);
  prefer_rows(p);
  bool rows = true;
  for (const Side* s : sides(p)) rows = rows && s->col == 1;
  if (!rows) {
    if (call.op != Operator::orbit || !call.moves_bits || p.index) return false;
    plan_strided(p);
    return true;
  }
  sort_views(p);
  const int64_t lanes = 16 / call.element_size, plane_bytes = p.H * p.W * call.element_size;
  p.vectors = p.W % lanes == 0 && p.out_W % lanes == 0 && aligned_strides(p, lanes, -1);
  for (const Side* s : sides(p)) p.vectors = p.vectors && s->row % lanes == 0;
  p.invariant = call.op == Operator::sum && p.x.view == 0 && !p.weights && p.n_views > 1 && is_group(p);
  // One tensor for all views is staged as a run wherever it fits, to be read once.
  const bool staged_once = call.op == Operator::sum && p.x.view == 0;
  const bool runs = gapless(p) && (!p.vectors || plane_bytes < kSmallPlane || staged_once) && plan_runs(p, call.op);
  if (!runs) {
    if (plane_bytes < kLeastRun && p.planes_per_column < p.planes) return false;  // tiles that are nearly empty
    plan_tiles(p, call.op);
  }
  return true;
}

}  // namespace cuda
}  // namespace equikern
