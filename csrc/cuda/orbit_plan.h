// How one orbit is laid out and cut into blocks. Host code without CUDA headers.
#pragma once

#include <cstdint>
#include <vector>

namespace equikern {

constexpr int kMaxViews = 64, kMaxLead = 8, kThreads = 256;

struct FastDivider {  // n / divisor for n < 2^31 (Granlund and Montgomery)
  uint32_t divisor = 1, multiplier = 1, shift = 0;
};

enum class OrbitKernel {
  runs,     // planes that follow each other without gaps: staged whole as one run of memory, for any plane size
  tiles,    // rows without gaps: square tiles
  strided,  // everything else: one element, or one vector of a dim that no view moves, a thread
};

// Everything a kernel needs. Strides count elements of element_size bytes.
struct OrbitPlan {
  const unsigned char* x;
  unsigned char* out;
  int64_t H, W, out_H, out_W;
  int64_t x_row, x_col, out_view, out_row, out_col;
  int64_t lead[kMaxLead], x_lead[kMaxLead], out_lead[kMaxLead];  // merged leading dims
  int64_t planes;                                                // product of lead
  int64_t blocks;
  int32_t n_lead, n_views;
  int32_t planes_per_block;            // runs
  int32_t shared_bytes;
  FastDivider by_plane, by_out_W;  // runs
  int8_t order[kMaxLead + 2];          // strided: dims from the innermost; n_lead is H, n_lead + 1 is W
  uint8_t code[kMaxViews];
  uint8_t element_size;
  bool vectors;  // tiles: every row starts on 16 bytes and is a whole number of 16-byte vectors
  OrbitKernel kernel;
};

// Merges dims and chooses the kernel. sizes and x_strides: (*lead, H, W); out_strides: (|G|, *lead, H', W').
// Throws std::invalid_argument where the layout has too many dims or views. blocks is 0 if there is nothing to do.
OrbitPlan plan_orbit(const void* x, void* out, const std::vector<int64_t>& sizes, const std::vector<int64_t>& x_strides,
                     const std::vector<int64_t>& out_strides, const std::vector<uint8_t>& codes, int64_t element_size);

// Runs a plan on a device's stream (cudaStream_t). Throws std::runtime_error with CUDA's message.
void launch_orbit(const OrbitPlan& plan, int device, void* stream);

}  // namespace equikern
