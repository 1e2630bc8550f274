// equikern._C: tensors come as pointers, sizes and strides, so that no torch header is needed and one build serves
// every version of torch. Checks of the user's input are in Python; here are the canonical form and the kernels.
#include "builder.h"

namespace equikern {

void bind_matrices(py::module_& m);
#ifdef EQUIKERN_WITH_CUDA
void bind_cuda(py::module_& m);
#endif

namespace {

void orbit(uintptr_t x, const py::tuple& shape, const py::tuple& x_strides, uintptr_t out, const py::tuple& out_strides,
           const std::string& codes, int spatial, int dtype, double scale, uintptr_t weights, uintptr_t index, int keep, int threads) {
  const Ints sizes = read(shape);
  if (empty(sizes)) return;
  Builder b(sizes, spatial, codes, dtype, threads);
  b.add(b.p.in, x, read(x_strides), false);
  b.add(b.p.out, out, read(out_strides), true);
  b.p.scale = scale;
  b.p.weights = pointer(weights);
  b.p.index = reinterpret_cast<int64_t*>(pointer(index));
  b.p.exact = scale == 1.0 && !weights;
  b.finish(keep);
  b.run(kernels().orbit);
}

// λ divided by its sum over the views, in the accumulator's type.
template <class A>
std::vector<char> normalised(const Problem& p) {
  std::vector<char> memory(sizeof(A) * p.views * p.weight_columns);
  const A* from = static_cast<const A*>(p.weights);
  A* to = reinterpret_cast<A*>(memory.data());
  for (int64_t c = 0; c < p.weight_columns; ++c) {
    A sum = 0;
    for (int g = 0; g < p.views; ++g) sum += from[g * p.weight_columns + c];
    for (int g = 0; g < p.views; ++g) to[g * p.weight_columns + c] = from[g * p.weight_columns + c] / sum;
  }
  return memory;
}

// `other`: the second output of mean_std, or for a sum what is added to every view: as many views more, of one tensor.
void reduce(uintptr_t y, const py::tuple& shape, const py::tuple& y_strides, uintptr_t out, const py::tuple& out_strides, uintptr_t other,
            const py::tuple& other_strides, const std::string& codes, int spatial, int dtype, int op, double scale, uintptr_t weights,
            int keep, int threads) {
  const Ints sizes = read(shape);
  if (empty(sizes)) return;
  Builder b(sample_of(sizes), spatial, codes, dtype, threads);
  b.add(b.p.in, y, read(y_strides), true);
  b.add(b.p.out, out, read(out_strides), false);
  if (other && op == kSum) b.add_to_views(other, read(other_strides));
  else if (other) b.add(b.p.other, other, read(other_strides), false);
  b.p.op = op;
  b.p.scale = scale;
  b.p.weights = pointer(weights);
  b.finish(keep);
  std::vector<char> shares;
  if (op == kWeightedMean) {
    shares = b.p.dtype == Dtype::kFloat64 ? normalised<double>(b.p) : normalised<float>(b.p);
    b.p.weights = shares.data();
    b.p.op = kSum;
  }
  b.run(kernels().reduce);
}

void orbit_dot(uintptr_t x, const py::tuple& shape, const py::tuple& x_strides, uintptr_t y, const py::tuple& y_strides, uintptr_t out,
               const py::tuple& out_strides, uintptr_t dots, const std::string& codes, int spatial, int dtype, uintptr_t weights, int keep,
               int threads) {
  const Ints sizes = read(shape);
  Builder b(sizes, spatial, codes, dtype, threads);
  b.add(b.p.in, x, read(x_strides), false);
  b.add(b.p.other, y, read(y_strides), true);
  if (out) b.add(b.p.out, out, read(out_strides), true);
  b.p.weights = pointer(weights);
  b.p.dots = pointer(dots);
  b.finish(keep);
  b.run(kernels().orbit_dot);
}

void select(uintptr_t y, const py::tuple& shape, const py::tuple& y_strides, uintptr_t out, const py::tuple& out_strides, uintptr_t index,
            const std::string& codes, int spatial, int dtype, uintptr_t scores, bool scores_double, bool minimum, int keep, int threads) {
  const Ints sizes = read(shape);
  Builder b(sample_of(sizes), spatial, codes, dtype, threads);
  b.add(b.p.in, y, read(y_strides), true);
  b.add(b.p.out, out, read(out_strides), false);
  b.p.index = reinterpret_cast<int64_t*>(pointer(index));
  b.p.scores = pointer(scores);
  b.p.scores_double = scores_double;
  b.p.minimum = minimum;
  b.finish(keep);
  b.run(kernels().select);
}

// The Moves of views, which Python packs.
std::vector<Moves> unpacked(const std::string& bytes) {
  std::vector<Moves> moves(bytes.size() / sizeof(Moves));
  std::memcpy(moves.data(), bytes.data(), bytes.size());
  return moves;
}

// `codes`: one 0 for each view; `maps`: Moves whose sources are the whole map.
void tokens(uintptr_t x, const py::tuple& shape, const py::tuple& x_strides, uintptr_t out, const py::tuple& out_strides,
            const std::string& codes, int dtype, const std::string& maps, int64_t size, int threads) {
  const Ints sizes = read(shape);
  if (empty(sizes)) return;
  Builder b(sizes, 0, codes, dtype, threads);
  b.add(b.p.in, x, read(x_strides), false);
  b.add(b.p.out, out, read(out_strides), true);
  b.finish(0);
  const std::vector<Moves> tables = unpacked(maps);
  b.p.moves = tables.data();
  int64_t outside = 0;
  bool done = true;
  b.run([&](const Problem& p) { done = kernels().tokens(p, size, &outside); });
  if (!done) throw py::value_error("x: expected token ids from 0 to " + std::to_string(size - 1) + ", got " + std::to_string(outside));
}

void softmax_mean(uintptr_t y, const py::tuple& shape, const py::tuple& y_strides, uintptr_t out, const py::tuple& out_strides,
                  uintptr_t lse, const std::string& moves, int dtype, int space, int threads) {
  const Ints sizes = read(shape);
  if (empty(sizes)) return;
  Builder b(sample_of(sizes), -1, moves, dtype, threads);
  b.add(b.p.in, y, read(y_strides), true);
  b.add(b.p.out, out, read(out_strides), false);
  b.finish(0);
  b.p.numbers = pointer(lse);
  b.p.space = space;
  b.run(kernels().softmax_mean);
}

void softmax_mean_backward(uintptr_t grad, const py::tuple& grad_strides, uintptr_t y, const py::tuple& shape, const py::tuple& y_strides,
                           uintptr_t lse, uintptr_t out, const py::tuple& out_strides, const std::string& moves,
                           const std::string& inverse, int dtype, int space, int threads) {
  const Ints sizes = read(shape);
  if (empty(sizes)) return;
  Builder b(sample_of(sizes), -1, moves, dtype, threads);
  b.add(b.p.in, y, read(y_strides), true);
  b.add(b.p.out, out, read(out_strides), true);
  b.add(b.p.other, grad, read(grad_strides), false);
  b.finish(0);
  const std::vector<Moves> back = unpacked(inverse);
  b.p.inverse = back.data();
  b.p.numbers = pointer(lse);
  b.p.space = space;
  b.run(kernels().softmax_mean_backward);
}

void score(uintptr_t logits, const py::tuple& shape, const py::tuple& strides, uintptr_t out, int dtype, int kind, int threads) {
  const Ints sizes = read(shape);
  if (empty(sizes)) return;
  Builder b(sizes, -1, std::string(sizeof(Moves), '\0'), dtype, threads);
  b.add(b.p.in, logits, read(strides), false);
  b.finish(0);
  b.p.numbers = pointer(out);
  b.p.kind = kind;
  b.run(kernels().score);
}

void score_select(uintptr_t y, const py::tuple& shape, const py::tuple& y_strides, uintptr_t out, const py::tuple& out_strides,
                  uintptr_t index, const std::string& moves, int dtype, int kind, bool minimum, int threads) {
  const Ints sizes = read(shape);
  if (empty(sizes)) return;
  Builder b(sample_of(sizes), -1, moves, dtype, threads);
  b.add(b.p.in, y, read(y_strides), true);
  b.add(b.p.out, out, read(out_strides), false);
  b.finish(0);
  b.p.index = reinterpret_cast<int64_t*>(pointer(index));
  b.p.kind = kind;
  b.p.minimum = minimum;
  b.run(kernels().score_select);
}

void cross_entropy(uintptr_t y, const py::tuple& shape, const py::tuple& y_strides, uintptr_t target, uintptr_t loss, uintptr_t grad,
                   const py::tuple& grad_strides, const std::string& moves, const std::string& inverse, int dtype, int space,
                   int64_t ignore_index, double smoothing, double factor, int threads) {
  const Ints sizes = read(shape);
  if (empty(sizes)) return;
  Builder b(sample_of(sizes), -1, moves, dtype, threads);
  b.add(b.p.in, y, read(y_strides), true);
  if (grad) b.add(b.p.out, grad, read(grad_strides), true);
  b.finish(0);
  const std::vector<Moves> back = unpacked(inverse);
  b.p.inverse = back.data();
  b.p.target = reinterpret_cast<const int64_t*>(pointer(target));
  for (int64_t r = 0, rows = b.p.planes(); r < rows; ++r) {
    const int64_t t = b.p.target[r];
    if (t != ignore_index && (t < 0 || t >= b.p.W))
      throw py::value_error("target: expected 0 … " + std::to_string(b.p.W - 1) + " or " + std::to_string(ignore_index) + ", got " +
                            std::to_string(t));
  }
  b.p.numbers = pointer(loss);
  b.p.space = space;
  b.p.ignore_index = ignore_index;
  b.p.smoothing = smoothing;
  b.p.factor = factor;
  b.run(kernels().cross_entropy);
}

py::list isas() {
  py::list names;
  for (const char* const* name = isa_names(); *name; ++name) names.append(*name);
  return names;
}

py::dict build_config() {
  py::dict config;
  config["compiler"] = __VERSION__;
#ifdef _OPENMP
  config["openmp"] = _OPENMP;
#else
  config["openmp"] = py::none();
#endif
#ifdef EQUIKERN_WITH_CUDA
  config["with_cuda"] = true;
#else
  config["with_cuda"] = false;
#endif
  return config;
}

}  // namespace
}  // namespace equikern

PYBIND11_MODULE(_C, m) {
  using namespace equikern;
  m.doc() = "equikern's native kernels; equikern.backends wraps them.";
  m.def("orbit", &orbit);
  m.def("reduce", &reduce);
  m.def("orbit_dot", &orbit_dot);
  m.def("select", &equikern::select);
  m.def("tokens", &equikern::tokens);
  m.def("softmax_mean", &equikern::softmax_mean);
  m.def("softmax_mean_backward", &equikern::softmax_mean_backward);
  m.def("score", &equikern::score);
  m.def("score_select", &equikern::score_select);
  m.def("cross_entropy", &equikern::cross_entropy);
  bind_matrices(m);
  m.def("cpu_isa", [] { return kernels().name; });
  m.def("cpu_features", &isas);
  m.def("build_config", &build_config);
#ifdef EQUIKERN_WITH_CUDA
  bind_cuda(m);
#endif
}
