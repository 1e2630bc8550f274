// A kernel call in canonical form: planes of pixels, addressed by a few merged outer dims.
#pragma once

#include <algorithm>
#include <cstdint>

#include "../dtypes.h"
#include "sizes.h"

namespace equikern {

enum Kind : int { kStill = 0, kGrid, kPermutation, kField, kMixed, kMatrix, kTokens };
enum Op : int { kSum = 0, kMax, kMin, kGmean, kHmean, kTsharpen, kLogodd, kLog1p, kStd, kMeanStd, kWeightedMean, kMedian, kVote, kVariance };
enum Space : int { kLogits = 0, kProbs, kLogProbs };
enum ScoreKind : int { kMaxProb = 0, kEntropy, kMargin, kLargest };

// One tensor of a call; strides in elements.
struct Side {
  char* data = nullptr;
  int64_t group = 0;               // between views
  int64_t channel = 0;             // between the channels of a field, where they are permuted on the sides that have views
  int64_t outer[kMaxDims] = {};    // of the outer dims
  int64_t slab = 0, row = 0, col = 0;  // slab: between the planes of a volume
};

// One view of a permuted dim: entry positions[k] shows entry sources[k] of the tensor, or minus entry ~sources[k] where
// that is below zero; all others stay in place. Positions rise.
struct Moves {
  const int32_t *positions, *sources;
  int64_t count;
  bool has_signs;
};

struct Problem {
  Dtype dtype;
  Kind kind = kStill;
  int views = 0;
  int added = kMaxViews;           // views from this one on are the same ones again, read from `plus`
  const uint8_t* codes = nullptr;  // one a view: of images see grid_index.h, of volumes boxes.h, of permutations whether it moves
  // Permutations of the entries of a row, or of whole rows: the entries that some view moves, for each view their sources.
  const int32_t *positions = nullptr, *sources = nullptr;
  int64_t moved = 0;
  bool move_rows = false;
  // Fields: plane n has channel c = n / channel_planes % channels, whose view g has channels_of[g·channels + c] on the
  // sides with views; ~channel (below zero) stands for minus that one.
  const int32_t* channels_of = nullptr;
  int64_t channels = 1, channel_planes = 1;
  bool signs = false;              // whether there is a minus among them
  const void* mats = nullptr;      // a matrix a view: of the W entries of a vector, or of a field's channels, a plane being a field
  const int32_t* tokens = nullptr; // (views, vocabulary): what each id becomes
  int64_t vocabulary = 0;
  bool volumes = false;            // planes are volumes D×H×W, whose views may permute all three
  int64_t D = 1, Do = 1;
  int64_t H = 1, W = 1;            // the plane that is looked at
  int64_t Ho = 1, Wo = 1;          // what a view of it measures
  int64_t V = 1;                   // elements of a pixel that lie side by side (channels-last), moved together
  int dims = 0;                    // outer dims, the last one running fastest
  int64_t size[kMaxDims] = {};
  Side in, out;
  Side other;                      // y of orbit_dot, the gradient of softmax_mean and of reductions
  Side plus, spread;               // what is added to every view of a sum; the second output of mean_std, or its gradient
  // Weights, scores and indices hold one number for `planes_per_*` consecutive planes.
  const void* weights = nullptr;   // float or double, (views, weight_columns)
  int64_t weight_columns = 1, planes_per_weight = 1;
  int64_t* index = nullptr;        // (index_columns)
  int64_t planes_per_index = 1;
  const void* scores = nullptr;    // (views, weight_columns)
  bool scores_double = false, minimum = true;
  void* dots = nullptr;            // (views, weight_columns)
  double scale = 1.0;
  bool exact = true;               // move bits: no scale, no weights
  int op = 0;
  int threads = 1;

  // Numbers that a reduction keeps for each element until the last view has come: a running value, or every view's.
  int64_t kept() const { return op == kMedian || op == kVote ? views : op == kStd || op == kMeanStd ? 2 : 1; }
  int order() const { return std::min(views, added); }
  const Side& source(int g) const { return g < added ? in : plus; }
  // The view that an added one repeats.
  int view(int g) const { return g < added ? g : g - added; }
  bool permutes() const { return kind == kPermutation; }
  unsigned code(int g) const { return permutes() ? 0 : codes[view(g)]; }
  Moves moves(int g, const int32_t* from) const {
    g = view(g);
    return {positions, from + g * moved, codes[g] ? moved : 0, codes[g] == 2};
  }
  Moves moves(int g) const { return moves(g, sources); }
  // The view that the index names; any, but one that exists, where that is out of range.
  int chosen(int64_t column) const { return int(std::min<int64_t>(std::max<int64_t>(index[column], 0), views - 1)); }
  int64_t planes() const {
    int64_t n = 1;
    for (int d = 0; d < dims; ++d) n *= size[d];
    return n;
  }
};

// A call on rows of W logits, H being 1: views that permute them or leave them in place.
struct RowProblem : Problem {
  const int32_t* inverse_sources = nullptr;  // of the inverse permutations, at the same positions
  int space = kLogits, score = kMaxProb;
  void* numbers = nullptr;         // of the accumulator's type: logarithms of sums (views, rows), losses or scores (rows)
  const int64_t* target = nullptr;
  int64_t ignore_index = 0;
  double smoothing = 0, z_loss = 0, softcap = 0, factor = 1;  // a softcap of 0 is none
  const void* class_weights = nullptr;  // of the accumulator's type, one for each word
  double class_weight_sum = 0;

  Moves inverse(int g) const { return moves(g, inverse_sources); }
};

// Planes H×W without gaps, and what rows (H, down) and columns (W, across) count.
struct Coarse {
  Dtype dtype;
  const void* x;
  int64_t planes, H, W, down, across;
  const double *rows, *columns;
  double* out;                     // (planes, down, across)
  int threads;
};

struct Kernels {
  const char* name;
  void (*orbit)(const Problem&);
  void (*reduce)(const Problem&);
  void (*orbit_dot)(const Problem&);
  void (*reduce_backward)(const Problem&);
  void (*variance)(const Problem&);
  void (*select)(const Problem&);
  bool (*tokens)(const Problem&, int64_t* outside);  // false and an id that is not in 0 … vocabulary − 1, if any
  void (*softmax_mean)(const RowProblem&);
  void (*softmax_mean_backward)(const RowProblem&);
  void (*score)(const RowProblem&);
  void (*score_select)(const RowProblem&);
  void (*cross_entropy)(const RowProblem&);
  void (*coarse)(const Coarse&);
};

const Kernels& kernels();        // for this machine
const char* const* isa_names();  // compiled and runnable here, best first; ends with nullptr

}  // namespace equikern
