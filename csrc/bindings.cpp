// equikern._C: tensors come as pointers, sizes and strides, so that no torch header is needed and one build serves
// every version of torch. Checks of the user's input are in Python; here are the canonical form and the kernels.
#include <pybind11/pybind11.h>

#include <algorithm>
#include <string>
#include <vector>

#include "cpu/problem.h"

namespace py = pybind11;

namespace equikern {

#ifdef EQUIKERN_WITH_CUDA
void bind_cuda(py::module_& m);
#endif

namespace {

// The sizes or strides of one tensor, without a heap allocation: small calls are counted in hundreds of nanoseconds.
struct Ints {
  int64_t values[kMaxDims + 4];
  int count = 0;
  int64_t operator[](int k) const { return values[k]; }
  Ints part(int from, int to) const {
    Ints v;
    for (int k = from; k < to; ++k) v.values[v.count++] = values[k];
    return v;
  }
};

// A tuple of ints such as torch's shape and stride() give.
Ints read(const py::tuple& t) {
  Ints v;
  if (t.size() > kMaxDims + 3) throw py::value_error("expected at most " + std::to_string(kMaxDims + 3) + " dims, got " + std::to_string(t.size()));
  for (; v.count < int(t.size()); ++v.count) {
    const int64_t n = PyLong_AsLongLong(PyTuple_GET_ITEM(t.ptr(), Py_ssize_t(v.count)));
    if (n == -1 && PyErr_Occurred()) throw py::error_already_set();
    v.values[v.count] = n;
  }
  return v;
}

char* pointer(uintptr_t address) { return reinterpret_cast<char*>(address); }

// Fills in a problem from the sizes of one sample (lead…, H, W) and each side's strides of it.
struct Builder {
  Problem p;
  Ints lead;                  // sizes of the lead dims
  Side* sides[3];
  Ints strides[3];            // of each side's lead dims
  int count = 0;
  std::string transposed;     // codes seen from a transposed source

  Builder(const Ints& sample, int spatial, const std::string& codes, int dtype, int threads) {
    if (int(codes.size()) > kMaxViews) throw py::value_error("at most " + std::to_string(kMaxViews) + " views, got " + std::to_string(codes.size()));
    p.dtype = Dtype(dtype);
    p.views = int(codes.size());
    p.codes = reinterpret_cast<const uint8_t*>(codes.data());
    p.threads = std::max(1, threads);
    lead = sample.part(0, sample.count - spatial);
    if (spatial) p.H = sample[sample.count - 2], p.W = sample[sample.count - 1];
  }

  // `group` tells whether the strides begin with the group axis.
  void add(Side& side, uintptr_t data, const Ints& s, bool group, int spatial) {
    side.data = pointer(data);
    side.group = group ? s[0] : 0;
    if (spatial) side.row = s[s.count - 2], side.col = s[s.count - 1];
    else side.row = side.col = 1;
    strides[count] = s.part(group, s.count - spatial);
    sides[count++] = &side;
  }

  // Dims up to `keep` stay apart from those after them: weights and indices change with them.
  void finish(int keep, bool spatial) {
    const bool turned = p.views && (p.codes[0] & 1);
    p.Ho = turned && p.H != p.W ? p.W : p.H;
    p.Wo = turned && p.H != p.W ? p.H : p.W;
    int n = lead.count;
    auto all = [&](auto test) { for (int k = 0; k < count; ++k) if (!test(*sides[k], strides[k])) return false; return true; };
    if (spatial && n > keep && lead[n - 1] > 1 &&
        all([&](const Side& s, const Ints& st) { return st[n - 1] == 1 && s.col >= lead[n - 1]; })) {
      p.V = lead[n - 1];  // channels-last
      --n;
    }
    if (!spatial) {  // no plane: the trailing dims that lie without gaps are one row
      while (n > keep && all([&](const Side& s, const Ints& st) { return st[n - 1] == p.W; })) p.W *= lead[--n];
      p.Wo = p.W;
      for (int k = 0; k < count; ++k) sides[k]->row = p.W;
    }
    // Outer dims: those of size one vanish, neighbours without gaps merge.
    for (int d = 0; d < n; ++d) {
      if (lead[d] == 1) continue;
      const int last = p.dims - 1;
      if (p.dims && d != keep && all_merge(d, last)) {
        p.size[last] *= lead[d];
      } else {
        if (p.dims == kMaxDims) throw py::value_error("more than " + std::to_string(kMaxDims) + " dims that do not merge");
        p.size[p.dims++] = lead[d];
      }
      for (int k = 0; k < count; ++k) sides[k]->outer[p.dims - 1] = strides[k][d];
    }
    int64_t per = 1, columns = 1;
    for (int d = 0; d < n; ++d) (d < keep ? columns : per) *= lead[d];
    p.weight_columns = columns;
    p.planes_per_weight = p.planes_per_index = std::max<int64_t>(1, per);
    if (p.V == 1 && spatial && p.in.row == 1 && p.in.col != 1) turn_source();
  }

  bool all_merge(int d, int last) const {
    for (int k = 0; k < count; ++k)
      if (sides[k]->outer[last] != strides[k][d] * lead[d]) return false;
    return true;
  }

  // A source whose columns are contiguous is read as its transpose, with other codes.
  void turn_source() {
    transposed.assign(reinterpret_cast<const char*>(p.codes), p.views);
    for (char& c : transposed) c = char((c ^ 1) & 1) | char((c & 2) << 1) | char((c & 4) >> 1);
    p.codes = reinterpret_cast<const uint8_t*>(transposed.data());
    std::swap(p.H, p.W);
    std::swap(p.in.row, p.in.col);
  }

  void run(void (*kernel)(const Problem&)) {
    const int64_t work = p.planes() * p.H * p.W * p.V * p.views;
    if (work <= 65536) {  // shorter than handing over the GIL
      kernel(p);
    } else {
      py::gil_scoped_release release;
      kernel(p);
    }
  }
};

Ints sample_of(const Ints& shape) { return shape.part(1, shape.count); }

bool empty(const Ints& shape) { return std::find(shape.values, shape.values + shape.count, 0) != shape.values + shape.count; }

void orbit(uintptr_t x, const py::tuple& shape, const py::tuple& x_strides, uintptr_t out, const py::tuple& out_strides,
           const std::string& codes, int spatial, int dtype, double scale, uintptr_t weights, uintptr_t index, int keep, int threads) {
  const Ints sizes = read(shape);
  if (empty(sizes)) return;
  Builder b(sizes, spatial, codes, dtype, threads);
  b.add(b.p.in, x, read(x_strides), false, spatial);
  b.add(b.p.out, out, read(out_strides), true, spatial);
  b.p.scale = scale;
  b.p.weights = pointer(weights);
  b.p.index = reinterpret_cast<int64_t*>(pointer(index));
  b.p.exact = scale == 1.0 && !weights;
  b.finish(keep, spatial);
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

void reduce(uintptr_t y, const py::tuple& shape, const py::tuple& y_strides, uintptr_t out, const py::tuple& out_strides, uintptr_t out2,
            const py::tuple& out2_strides, const std::string& codes, int spatial, int dtype, int op, double scale, uintptr_t weights,
            int keep, int threads) {
  const Ints sizes = read(shape);
  if (empty(sizes)) return;
  Builder b(sample_of(sizes), spatial, codes, dtype, threads);
  b.add(b.p.in, y, read(y_strides), true, spatial);
  b.add(b.p.out, out, read(out_strides), false, spatial);
  if (out2) b.add(b.p.other, out2, read(out2_strides), false, spatial);
  b.p.op = op;
  b.p.scale = scale;
  b.p.weights = pointer(weights);
  b.finish(keep, spatial);
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
  b.add(b.p.in, x, read(x_strides), false, spatial);
  b.add(b.p.other, y, read(y_strides), true, spatial);
  if (out) b.add(b.p.out, out, read(out_strides), true, spatial);
  b.p.weights = pointer(weights);
  b.p.dots = pointer(dots);
  b.finish(keep, spatial);
  b.run(kernels().orbit_dot);
}

void select(uintptr_t y, const py::tuple& shape, const py::tuple& y_strides, uintptr_t out, const py::tuple& out_strides, uintptr_t index,
            const std::string& codes, int spatial, int dtype, uintptr_t scores, bool scores_double, bool minimum, int keep, int threads) {
  const Ints sizes = read(shape);
  Builder b(sample_of(sizes), spatial, codes, dtype, threads);
  b.add(b.p.in, y, read(y_strides), true, spatial);
  b.add(b.p.out, out, read(out_strides), false, spatial);
  b.p.index = reinterpret_cast<int64_t*>(pointer(index));
  b.p.scores = pointer(scores);
  b.p.scores_double = scores_double;
  b.p.minimum = minimum;
  b.finish(keep, spatial);
  b.run(kernels().select);
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
  m.def("cpu_isa", [] { return kernels().name; });
  m.def("cpu_features", &isas);
  m.def("build_config", &build_config);
#ifdef EQUIKERN_WITH_CUDA
  bind_cuda(m);
#endif
}
