// The kernels of matrices as Python calls them: pointers, sizes (lead…, d) and strides, as in bindings.cpp.
#include "../builder.h"
#include "matrix_problem.h"

namespace equikern {

extern const MatrixKernels matrix_baseline;
#if defined(__x86_64__)
extern const MatrixKernels matrix_avx2, matrix_avx512;
#endif

const MatrixKernels& matrix_kernels() {
#if defined(__x86_64__)
  for (const MatrixKernels* found : {&matrix_avx512, &matrix_avx2})
    if (!std::strcmp(found->name, kernels().name)) return *found;
#endif
  return matrix_baseline;
}

namespace {

// Fills in a problem from the sizes of one sample (lead…, d) and each side's strides.
struct Vectors {
  MatrixProblem p;
  Ints sizes, strides[3];
  Side* sides[3];
  int lead, count = 0;

  // `views`: whether the sizes begin with the group axis.
  Vectors(const py::tuple& shape, bool views, uintptr_t mats, int order, int dtype, int threads) {
    const Ints all = read(shape);
    sizes = all.part(views, all.count);
    lead = sizes.count - 1;
    p.W = p.Wo = sizes[lead];
    p.mats = reinterpret_cast<const void*>(mats);
    p.views = order;
    p.dtype = Dtype(dtype);
    p.threads = std::max(1, threads);
  }

  void add(Side& side, uintptr_t data, const py::tuple& s, bool group) {
    const Ints all = read(s);
    side.data = pointer(data);
    side.group = group ? all[0] : 0;
    strides[count] = all.part(group, all.count);
    side.col = strides[count][lead];
    sides[count++] = &side;
  }

  // Dims of one entry vanish, neighbours without gaps merge. Weights and indices change with the first `keep` dims.
  void finish(int keep) {
    int64_t per = 1, columns = 1;
    for (int d = 0; d < lead; ++d) {
      (d < keep ? columns : per) *= sizes[d];
      if (sizes[d] == 1) continue;
      bool merges = p.dims > 0;
      for (int k = 0; merges && k < count; ++k) merges = sides[k]->outer[p.dims - 1] == strides[k][d] * sizes[d];
      if (!merges) {
        if (p.dims == kMaxDims) throw py::value_error("more than " + std::to_string(kMaxDims) + " dims that do not merge");
        p.size[p.dims++] = 1;
      }
      p.size[p.dims - 1] *= sizes[d];
      for (int k = 0; k < count; ++k) sides[k]->outer[p.dims - 1] = strides[k][d];
    }
    p.weight_columns = columns;
    p.planes_per_weight = p.planes_per_index = std::max<int64_t>(1, per);
  }

  void run(void (*kernel)(const MatrixProblem&)) {
    if (p.planes() * p.W * p.views <= 65536) return kernel(p);  // shorter than handing over the GIL
    py::gil_scoped_release release;
    kernel(p);
  }
};

void orbit(uintptr_t x, const py::tuple& shape, const py::tuple& x_strides, uintptr_t out, const py::tuple& out_strides, uintptr_t mats,
           int order, int dtype, double scale, uintptr_t weights, uintptr_t index, int keep, int threads) {
  Vectors v(shape, false, mats, order, dtype, threads);
  v.add(v.p.in, x, x_strides, false);
  v.add(v.p.out, out, out_strides, true);
  v.p.scale = scale;
  v.p.weights = reinterpret_cast<const void*>(weights);
  v.p.index = reinterpret_cast<int64_t*>(index);
  v.finish(keep);
  v.run(matrix_kernels().orbit);
}

// `other` as in bindings.cpp.
void reduce(uintptr_t y, const py::tuple& shape, const py::tuple& y_strides, uintptr_t out, const py::tuple& out_strides, uintptr_t other,
            const py::tuple& other_strides, uintptr_t mats, int dtype, int op, double scale, uintptr_t weights, int keep, int threads) {
  Vectors v(shape, true, mats, py::cast<int>(shape[0]), dtype, threads);
  v.add(v.p.in, y, y_strides, true);
  v.add(v.p.out, out, out_strides, false);
  if (other) v.add(v.p.other, other, other_strides, false);
  v.p.op = op;
  v.p.scale = scale;
  v.p.weights = reinterpret_cast<const void*>(weights);
  v.finish(keep);
  v.run(matrix_kernels().reduce);
}

void orbit_dot(uintptr_t x, const py::tuple& shape, const py::tuple& x_strides, uintptr_t y, const py::tuple& y_strides, uintptr_t out,
               const py::tuple& out_strides, uintptr_t dots, uintptr_t mats, int order, int dtype, uintptr_t weights, int keep, int threads) {
  Vectors v(shape, false, mats, order, dtype, threads);
  v.add(v.p.in, x, x_strides, false);
  v.add(v.p.other, y, y_strides, true);
  if (out) v.add(v.p.out, out, out_strides, true);
  v.p.weights = reinterpret_cast<const void*>(weights);
  v.p.dots = reinterpret_cast<void*>(dots);
  v.finish(keep);
  v.run(matrix_kernels().orbit_dot);
}

void select(uintptr_t y, const py::tuple& shape, const py::tuple& y_strides, uintptr_t out, const py::tuple& out_strides, uintptr_t index,
            uintptr_t mats, int dtype, uintptr_t scores, bool scores_double, bool minimum, int keep, int threads) {
  Vectors v(shape, true, mats, py::cast<int>(shape[0]), dtype, threads);
  v.add(v.p.in, y, y_strides, true);
  v.add(v.p.out, out, out_strides, false);
  v.p.index = reinterpret_cast<int64_t*>(index);
  v.p.scores = reinterpret_cast<const void*>(scores);
  v.p.scores_double = scores_double;
  v.p.minimum = minimum;
  v.finish(keep);
  v.run(matrix_kernels().select);
}

}  // namespace

void bind_matrices(py::module_& m) {
  m.def("matrix_orbit", &orbit);
  m.def("matrix_reduce", &reduce);
  m.def("matrix_orbit_dot", &orbit_dot);
  m.def("matrix_select", &select);
}

}  // namespace equikern
