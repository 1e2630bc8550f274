// How one call is laid out and cut into blocks. Host code without CUDA headers.
#pragma once

#include <cstdint>
#include <vector>

#include "grid_index.h"

namespace equikern {
namespace cuda {

constexpr int kMaxViews = 64, kMaxLead = 8, kThreads = 256, kWarp = 32;
constexpr int kMaxDotViews = 16;             // each has its place for every thread's sum in shared memory
constexpr int kDotLanes = 32;                // sums that remain of a view's kThreads before the last addition
constexpr int kViewBytes = 16;               // of a view in front of staged runs: its weight, and where its run starts

// n / divisor is the high word of (n + 1) * multiplier, while (n + 1) * divisor is at most 2^32: so for all that shared
// memory has room for.
struct FastDivider {
  uint32_t divisor = 1, multiplier = UINT32_MAX;
};

enum class Layout {
  runs,     // planes that follow each other without gaps: staged whole as one run of memory, for any plane size
  tiles,    // rows without gaps: square tiles
  strided,  // everything else: one element, or one vector of a dim that no view moves, a thread; orbits of bits only
};

// How one pixel is found of every set that a group of views joins.
enum class Corner : uint8_t {
  whole,     // all pixels of a box at the first corner
  quarters,  // quarter turns: a quadrant, whose middle column is turned to its middle row
  eighths,   // quarter turns and reflections: the triangle above the diagonal of a quadrant, folded to a box
  asked,     // those pixels of a box that are the first of their set
};

// A tensor; strides count elements.
struct Side {
  unsigned char* data;
  int64_t view, row, col;
  int64_t lead[kMaxLead];
};

// Everything a kernel needs. Element (i, j) of view g of a plane is the source's at source_point(code[g], i, j).
struct Plan {
  Side x;    // the source: one tensor, or where x.view is not 0 one for every view
  Side out;  // the result of the views, in their sizes; data is null where only the dots are wanted
  Side y;    // dots: what is multiplied with the views of x
  int64_t H, W, out_H, out_W;
  int64_t lead[kMaxLead];  // merged leading dims
  int64_t planes;          // their product
  int64_t blocks, blocks_per_column, planes_per_column;  // planes of a column share their weights and index
  int64_t planes_per_weight, weight_columns, planes_per_index, index_columns;
  const void* weights;  // (views, weight_columns), in the accumulator's type; or null
  int64_t* index;       // (index_columns); or null
  const void* scores;   // (views, index_columns); or null
  void* partial;        // dots: (views, blocks)
  void* dots;           // dots: (views, weight_columns)
  double scale;
  int32_t n_lead, n_views;
  int32_t planes_per_block;         // runs
  int32_t staged_start, run_bytes;  // runs: byte of shared memory where the first is staged, and to the next
  int32_t shared_bytes;             // runs
  int32_t row_bytes, plane_bytes;   // runs: from one staged row, and plane, to the next
  FastDivider by_plane, by_out_W;   // runs
  FastDivider by_parts;             // runs: of one, which as many warps stage
  LinearView views[kMaxViews];      // runs: the views of a staged plane, in bytes, see plan_runs
  FastDivider by_row;               // runs, invariant: vectors of a row
  int32_t box_H, box_W;             // runs, invariant: the box of the corner
  int32_t box_planes;               // runs, invariant: boxes side by side in a block's threads
  FastDivider by_box, by_box_W;     // runs, invariant
  int8_t order[kMaxLead + 2];       // strided: dims from the innermost; n_lead is H, n_lead + 1 is W
  uint8_t code[kMaxViews];
  uint8_t sorted[kMaxViews];        // sums: the views by (transposed, columns reversed)
  uint8_t class_end[4];             // sums: where each of the four classes ends in sorted
  uint8_t element_size;
  bool vectors;       // tiles: every row starts on 16 bytes and is a whole number of 16-byte vectors
  bool normalized;    // sums: divided by the weights' sum
  bool invariant;     // sums: of one tensor's views that are a group, all with the same factor
  Corner corner;      // runs, invariant
  bool scores_double, minimum;
  Layout layout;
};

enum class Operator { orbit, select, sum, dots };

// One call as Python describes it. Sizes: (*lead, H, W) of x; strides with the axis of the views where it has one.
struct Call {
  Operator op;
  const void* x = nullptr;
  void* out = nullptr;
  const void* y = nullptr;
  std::vector<int64_t> sizes, x_strides, out_strides, y_strides;
  std::vector<uint8_t> codes;
  int64_t element_size = 0;
  double scale = 1;
  const void* weights = nullptr;
  int64_t* index = nullptr;
  const void* scores = nullptr;
  int weight_dims = 0, index_dims = 0;  // leading dims that weights (or dots) and index have
  bool normalized = false, scores_double = false, minimum = false;
  bool moves_bits = true;  // an orbit whose factors are all 1
};

// Merges dims and chooses the layout; false where there is no kernel for the layout. blocks is 0 if there is nothing
// to do. Throws std::invalid_argument where the arguments do not belong together.
bool make_plan(const Call& call, Plan& plan);

// Run a plan on a device's stream (cudaStream_t); dtype as in dtypes.h. Throw std::runtime_error with CUDA's message.
void launch_orbit(const Plan& plan, int device, void* stream);
void launch_scaled_orbit(const Plan& plan, int dtype, int device, void* stream);
void launch_select(const Plan& plan, int device, void* stream);
void launch_sum(const Plan& plan, int dtype, int device, void* stream);
void launch_dots(const Plan& plan, int dtype, int device, void* stream);

}  // namespace cuda
}  // namespace equikern
