// equikern._C: tensors come as pointers, sizes and strides, so that no torch header is needed and one build serves
// every version of torch. Checks of the user's input are in Python; here are the canonical form and the kernels.
#include <cstring>
#include <vector>

#include "builder.h"

namespace equikern {

#ifdef EQUIKERN_WITH_CUDA
void bind_cuda(py::module_& m);
#endif

namespace {

// The dims behind the group axis.
Ints sample_of(const Ints& shape) { return shape.from(1); }

void orbit(uintptr_t x, const Ints& shape, const Ints& x_strides, uintptr_t out, const Ints& out_strides, const Views& views, int dtype,
           double scale, uintptr_t weights, uintptr_t index, int keep, int threads) {
  if (shape.has_zero()) return;
  Builder b(shape, views, dtype, threads);
  b.add(b.p.in, x, x_strides, false);
  b.add(b.p.out, out, out_strides, true);
  b.p.scale = scale;
  b.p.weights = at<void>(weights);
  b.p.index = at<int64_t>(index);
  b.p.exact = scale == 1.0 && !weights;
  b.finish(keep);
  b.run(kernels().orbit);
}

// λ divided by its sum over the views, in the accumulator's type.
template <class A>
std::vector<char> normalised(const Problem& p) {
  const int order = p.order();
  std::vector<char> memory(sizeof(A) * order * p.weight_columns);
  const A* from = static_cast<const A*>(p.weights);
  A* to = reinterpret_cast<A*>(memory.data());
  for (int64_t c = 0; c < p.weight_columns; ++c) {
    A sum = 0;
    for (int g = 0; g < order; ++g) sum += from[g * p.weight_columns + c];
    for (int g = 0; g < order; ++g) to[g * p.weight_columns + c] = from[g * p.weight_columns + c] / sum;
  }
  return memory;
}

void reduce(uintptr_t y, const Ints& shape, const Ints& y_strides, uintptr_t out, const Ints& out_strides, uintptr_t plus,
            const Ints& plus_strides, uintptr_t spread, const Ints& spread_strides, const Views& views, int dtype, int op, double scale,
            uintptr_t weights, int keep, int threads) {
  if (shape.has_zero()) return;
  Builder b(sample_of(shape), views, dtype, threads);
  b.add(b.p.in, y, y_strides, true);
  b.add(b.p.out, out, out_strides, false);
  if (plus) b.add_to_views(plus, plus_strides);
  if (spread) b.add(b.p.spread, spread, spread_strides, false);
  b.p.op = op;
  b.p.scale = scale;
  b.p.weights = at<void>(weights);
  b.finish(keep);
  std::vector<char> shares;
  if (op == kWeightedMean) {
    shares = b.p.dtype == Dtype::kFloat64 ? normalised<double>(b.p) : normalised<float>(b.p);
    b.p.weights = shares.data();
    b.p.op = kSum;
  }
  b.run(kernels().reduce);
}

void orbit_dot(uintptr_t x, const Ints& shape, const Ints& x_strides, uintptr_t y, const Ints& y_strides, uintptr_t out,
               const Ints& out_strides, uintptr_t dots, const Views& views, int dtype, uintptr_t weights, int keep, int threads) {
  Builder b(shape, views, dtype, threads);
  b.add(b.p.in, x, x_strides, false);
  b.add(b.p.other, y, y_strides, true);
  if (out) b.add(b.p.out, out, out_strides, true);
  b.p.weights = at<void>(weights);
  b.p.dots = at<void>(dots);
  b.finish(keep);
  b.run(kernels().orbit_dot);
}

// The gradient of reduce in y from those of its results; views only move entries.
void reduce_backward(uintptr_t grad, const Ints& grad_strides, uintptr_t spread, const Ints& spread_strides, uintptr_t y,
                     const Ints& shape, const Ints& y_strides, uintptr_t out, const Ints& out_strides, const Views& views, int dtype,
                     int op, int threads) {
  if (shape.has_zero()) return;
  Builder b(sample_of(shape), views, dtype, threads);
  b.add(b.p.in, y, y_strides, true);
  b.add(b.p.out, out, out_strides, true);
  b.add(b.p.other, grad, grad_strides, false);
  if (spread) b.add(b.p.spread, spread, spread_strides, false);
  b.p.op = op;
  b.out_of_views = true;
  b.finish(0);
  b.run(kernels().reduce_backward);
}

// Scale times the squares of the views' deviations from their means, summed over all but the first `keep` dims.
void variance(uintptr_t y, const Ints& shape, const Ints& y_strides, uintptr_t out, const Views& views, int dtype, double scale, int keep,
              int threads) {
  if (shape.has_zero()) return;
  Builder b(sample_of(shape), views, dtype, threads);
  b.add(b.p.in, y, y_strides, true);
  b.p.dots = at<void>(out);
  b.p.scale = scale;
  b.finish(keep);
  b.run(kernels().variance);
}

// The views' deviations from their means where the views are, times a factor for each of the first `keep` dims.
void variance_backward(uintptr_t factors, uintptr_t y, const Ints& shape, const Ints& y_strides, uintptr_t out, const Ints& out_strides,
                       const Views& views, int dtype, int keep, int threads) {
  if (shape.has_zero()) return;
  Builder b(sample_of(shape), views, dtype, threads);
  b.add(b.p.in, y, y_strides, true);
  b.add(b.p.out, out, out_strides, true);
  b.p.weights = at<void>(factors);
  b.p.op = kVariance;
  b.out_of_views = true;
  b.finish(keep);
  b.run(kernels().reduce_backward);
}

void select(uintptr_t y, const Ints& shape, const Ints& y_strides, uintptr_t out, const Ints& out_strides, uintptr_t index,
            const Views& views, int dtype, uintptr_t scores, bool scores_double, bool minimum, int keep, int threads) {
  Builder b(sample_of(shape), views, dtype, threads);
  b.add(b.p.in, y, y_strides, true);
  b.add(b.p.out, out, out_strides, false);
  b.p.index = at<int64_t>(index);
  b.p.scores = at<void>(scores);
  b.p.scores_double = scores_double;
  b.p.minimum = minimum;
  b.finish(keep);
  b.run(kernels().select);
}

// Every view of x, or with an index the view that it names for each of the first `keep` dims.
void tokens(uintptr_t x, const Ints& shape, const Ints& x_strides, uintptr_t out, const Ints& out_strides, const Views& views, int dtype,
            uintptr_t index, int keep, int threads) {
  if (shape.has_zero()) return;
  Builder b(shape, views, dtype, threads);
  b.add(b.p.in, x, x_strides, false);
  b.add(b.p.out, out, out_strides, !index);
  b.p.index = at<int64_t>(index);
  b.finish(keep);
  int64_t outside = 0;
  bool done = true;
  b.run([&](const Problem& p) { done = kernels().tokens(p, &outside); });
  if (!done) throw py::value_error("x: expected token ids from 0 to " + std::to_string(views.size - 1) + ", got " + std::to_string(outside));
}

void softmax_mean(uintptr_t y, const Ints& shape, const Ints& y_strides, uintptr_t out, const Ints& out_strides, uintptr_t lse,
                  const Views& views, int dtype, int space, int threads) {
  if (shape.has_zero()) return;
  Builder b(sample_of(shape), views.of_rows(), dtype, threads);
  b.add(b.p.in, y, y_strides, true);
  b.add(b.p.out, out, out_strides, false);
  b.finish(0);
  b.p.numbers = at<void>(lse);
  b.p.space = space;
  b.run(kernels().softmax_mean);
}

void softmax_mean_backward(uintptr_t grad, const Ints& grad_strides, uintptr_t y, const Ints& shape, const Ints& y_strides, uintptr_t lse,
                           uintptr_t out, const Ints& out_strides, const Views& views, int dtype, int space, int threads) {
  if (shape.has_zero()) return;
  Builder b(sample_of(shape), views.of_rows(), dtype, threads);
  b.add(b.p.in, y, y_strides, true);
  b.add(b.p.out, out, out_strides, true);
  b.add(b.p.other, grad, grad_strides, false);
  b.finish(0);
  b.p.inverse_sources = at<int32_t>(views.inverse());
  b.p.numbers = at<void>(lse);
  b.p.space = space;
  b.run(kernels().softmax_mean_backward);
}

void score(uintptr_t logits, const Ints& shape, const Ints& strides, uintptr_t out, int dtype, int kind, int threads) {
  if (shape.has_zero()) return;
  static const uint8_t still = 0;
  Builder b(shape, Views{kPermutation, 1, 1, &still, 0, 0, 0}, dtype, threads);
  b.add(b.p.in, logits, strides, false);
  b.finish(0);
  b.p.numbers = at<void>(out);
  b.p.score = kind;
  b.run(kernels().score);
}

void score_select(uintptr_t y, const Ints& shape, const Ints& y_strides, uintptr_t out, const Ints& out_strides, uintptr_t index,
                  const Views& views, int dtype, int kind, bool minimum, int threads) {
  if (shape.has_zero()) return;
  Builder b(sample_of(shape), views.of_rows(), dtype, threads);
  b.add(b.p.in, y, y_strides, true);
  b.add(b.p.out, out, out_strides, false);
  b.finish(0);
  b.p.index = at<int64_t>(index);
  b.p.score = kind;
  b.p.minimum = minimum;
  b.run(kernels().score_select);
}

void cross_entropy(uintptr_t y, const Ints& shape, const Ints& y_strides, uintptr_t target, uintptr_t loss, uintptr_t grad,
                   const Ints& grad_strides, const Views& views, int dtype, int space, int64_t ignore_index,
                   double smoothing, double z_loss, double softcap, uintptr_t class_weights, double factor, int threads) {
  if (shape.has_zero()) return;
  Builder b(sample_of(shape), views.of_rows(), dtype, threads);
  b.add(b.p.in, y, y_strides, true);
  if (grad) b.add(b.p.out, grad, grad_strides, true);
  b.finish(0);
  b.p.inverse_sources = at<int32_t>(views.inverse());
  b.p.target = at<int64_t>(target);
  for (int64_t r = 0, rows = b.p.planes(); r < rows; ++r) {
    const int64_t t = b.p.target[r];
    if (t != ignore_index && (t < 0 || t >= b.p.W))
      throw py::value_error("target: expected 0 … " + std::to_string(b.p.W - 1) + " or " + std::to_string(ignore_index) + ", got " +
                            std::to_string(t));
  }
  b.p.numbers = at<void>(loss);
  b.p.space = space;
  b.p.ignore_index = ignore_index;
  b.p.smoothing = smoothing;
  b.p.z_loss = z_loss;
  b.p.softcap = softcap;
  b.p.class_weights = at<void>(class_weights);
  b.p.factor = factor;
  b.run(kernels().cross_entropy);
}

// (planes, H, W) → (planes, down, across), all of them without gaps.
void coarse(uintptr_t x, int64_t planes, int64_t H, int64_t W, uintptr_t rows, int64_t down, uintptr_t columns, int64_t across,
            uintptr_t out, int dtype, int threads) {
  const Coarse c{Dtype(dtype), at<void>(x), planes, H, W, down, across, at<double>(rows), at<double>(columns), at<double>(out), threads};
  py::gil_scoped_release release;
  kernels().coarse(c);
}

py::list isas() {
  py::list names;
  for (const char* const* name = isa_names(); *name; ++name) names.append(*name);
  return names;
}

template <class E>
py::dict named(std::initializer_list<std::pair<const char*, E>> members) {
  py::dict names;
  for (const auto& [name, value] : members) names[name] = int(value);
  return names;
}

}  // namespace
}  // namespace equikern

PYBIND11_MODULE(_C, m) {
  using namespace equikern;
  m.doc() = "equikern's native kernels; equikern.backends wraps them.";
  m.def("orbit", &orbit);
  m.def("reduce", &reduce);
  m.def("orbit_dot", &orbit_dot);
  m.def("reduce_backward", &reduce_backward);
  m.def("variance", &variance);
  m.def("variance_backward", &variance_backward);
  m.def("select", &equikern::select);
  m.def("tokens", &equikern::tokens);
  m.def("softmax_mean", &equikern::softmax_mean);
  m.def("softmax_mean_backward", &equikern::softmax_mean_backward);
  m.def("score", &equikern::score);
  m.def("score_select", &equikern::score_select);
  m.def("cross_entropy", &equikern::cross_entropy);
  m.def("coarse", &coarse);
  m.def("cpu_isa", [] { return kernels().name; });
  m.def("cpu_features", &isas);
  m.attr("KINDS") = named<Kind>({{"still", kStill}, {"grid", kGrid}, {"permutation", kPermutation}, {"field", kField},
                                 {"mixed", kMixed}, {"matrix", kMatrix}, {"tokens", kTokens}});
  m.attr("DTYPES") = named<Dtype>({{"float32", Dtype::kFloat32}, {"float64", Dtype::kFloat64}, {"float16", Dtype::kFloat16},
                                   {"bfloat16", Dtype::kBFloat16}, {"bits8", Dtype::kBits8}, {"bits16", Dtype::kBits16},
                                   {"bits32", Dtype::kBits32}, {"bits64", Dtype::kBits64}, {"uint8", Dtype::kUint8}});
  m.attr("OPS") = named<Op>({{"sum", kSum}, {"max", kMax}, {"min", kMin}, {"gmean", kGmean}, {"hmean", kHmean},
                             {"tsharpen", kTsharpen}, {"logodd", kLogodd}, {"log1p", kLog1p}, {"std", kStd}, {"mean_std", kMeanStd},
                             {"weighted_mean", kWeightedMean}, {"median", kMedian}, {"vote", kVote}});
  m.attr("SPACES") = named<Space>({{"logits", kLogits}, {"probs", kProbs}, {"log_probs", kLogProbs}});
  m.attr("SCORES") = named<ScoreKind>({{"max_prob", kMaxProb}, {"entropy", kEntropy}, {"margin", kMargin}, {"max", kLargest}});
#ifdef EQUIKERN_WITH_CUDA
  bind_cuda(m);
#endif
}
