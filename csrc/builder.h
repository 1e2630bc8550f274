// From what Python hands over to a kernel call in canonical form. Nothing of it allocates memory for usual calls: small
// ones are counted in hundreds of nanoseconds.
#pragma once

#include <pybind11/pybind11.h>

#include <algorithm>
#include <string>
#include <type_traits>

#include "cpu/problem.h"

namespace py = pybind11;

namespace equikern {

// The sizes or strides of one tensor.
struct Ints {
  int64_t values[kMaxDims + 1];  // and the group axis
  int count = 0;
  int64_t operator[](int k) const { return values[k]; }
  int64_t& last(int k = 1) { return values[count - k]; }
  Ints part(int from, int to) const {
    Ints v;
    for (int k = from; k < to; ++k) v.values[v.count++] = values[k];
    return v;
  }
  Ints from(int first) const { return part(first, count); }
  Ints without(int dim) const {
    Ints v = part(0, dim);
    for (int k = dim + 1; k < count; ++k) v.values[v.count++] = values[k];
    return v;
  }
  bool has_zero() const { return std::find(values, values + count, 0) != values + count; }
};

inline int64_t read_int(PyObject* tuple, Py_ssize_t k) {
  const int64_t n = PyLong_AsLongLong(PyTuple_GET_ITEM(tuple, k));
  if (n == -1 && PyErr_Occurred()) throw py::error_already_set();
  return n;
}

// What the views of a call do: the tuple that _C.pyi describes.
struct Views {
  Kind kind;
  int sides, count;
  const uint8_t* codes;
  int64_t size;
  uintptr_t table, positions;

  void read(PyObject* tuple) {
    if (PyTuple_GET_SIZE(tuple) != 6) throw py::value_error("views: expected 6 entries, got " + std::to_string(PyTuple_GET_SIZE(tuple)));
    char* bytes;
    Py_ssize_t length;
    if (PyBytes_AsStringAndSize(PyTuple_GET_ITEM(tuple, 2), &bytes, &length)) throw py::error_already_set();
    if (length > kMaxViews) throw py::value_error("at most " + std::to_string(kMaxViews) + " views, got " + std::to_string(length));
    kind = Kind(read_int(tuple, 0)), sides = int(read_int(tuple, 1)), size = read_int(tuple, 3);
    codes = reinterpret_cast<const uint8_t*>(bytes), count = int(length);
    table = uintptr_t(read_int(tuple, 4)), positions = uintptr_t(read_int(tuple, 5));
  }
  // Where a permutation's table has the sources of the inverses: beside those of the views, on one side or the other.
  uintptr_t inverse() const { return positions ? 2 * positions + sizeof(int32_t) * size * (2 + count) - table : 0; }
  // For kernels on rows, whose views permute the last dim or nothing.
  Views of_rows() const {
    Views v = *this;
    if (kind != kPermutation) v.kind = kPermutation, v.sides = 1, v.size = 0;
    return v;
  }
};

template <class T>
T* at(uintptr_t address) { return reinterpret_cast<T*>(address); }

// Fills in a problem from the sizes of one sample and each side's strides of it.
struct Builder {
  RowProblem p;
  int plane;                  // dims at the end that views move within, or multiply
  int permuted;               // or the dim that they permute
  Ints lead;                  // sizes of the other dims
  Side* sides[5];
  Ints strides[5];            // of each side's other dims
  int count = 0;
  std::string own_codes;      // seen from a transposed source
  bool out_of_views = false;  // whether the output is where the views are

  Builder(const Ints& sample, const Views& v, int dtype, int threads) {
    p.dtype = Dtype(dtype);
    p.threads = std::max(1, threads);
    p.kind = v.kind;
    p.views = v.count;
    p.codes = v.codes;
    plane = v.kind == kMatrix ? 1 : p.permutes() ? 0 : v.sides;
    permuted = sample.count - v.sides;
    lead = p.permutes() ? sample.without(permuted) : sample.part(0, sample.count - plane);
    if (p.permutes()) p.W = sample[permuted];
    if (plane > 0) p.W = sample[sample.count - 1];
    if (plane > 1) p.H = sample[sample.count - 2];
    if (plane > 2) p.D = sample[sample.count - 3];
    p.volumes = plane > 2 || v.kind == kMixed;  // images whose channels are mixed are volumes of one plane
    if (v.kind == kMixed || v.kind == kMatrix) p.mats = at<void>(v.table);
    if (v.kind == kMixed || v.kind == kField) p.channels = v.size;
    if (v.kind == kField) {
      p.channels_of = at<int32_t>(v.table);
      for (int64_t k = 0; k < v.count * v.size; ++k) p.signs |= p.channels_of[k] < 0;
    }
    if (p.permutes()) p.sources = at<int32_t>(v.table), p.positions = at<int32_t>(v.positions), p.moved = v.size;
    if (v.kind == kTokens) p.tokens = at<int32_t>(v.table), p.vocabulary = v.size;
  }

  // What is added to every view of p.in: as many views more, all of p.plus. Matrices multiply the sum of both.
  void add_to_views(uintptr_t data, const Ints& s) {
    add(p.plus, data, s, false);
    if (p.kind == kMatrix) return;
    if (p.channels_of) p.plus.channel = s[s.count - plane - 1];
    p.added = p.views;
    p.views *= 2;
  }

  // `group` tells whether the strides begin with the group axis.
  void add(Side& side, uintptr_t data, const Ints& s, bool group) {
    side.data = at<char>(data);
    side.group = group ? s[0] : 0;
    side.row = side.col = 1;
    Ints own = s.from(group);
    if (p.permutes()) side.col = own[permuted], own = own.without(permuted);
    if (plane > 0) side.col = own.last();
    if (plane > 1) side.row = own.last(2);
    if (plane > 2) side.slab = own.last(3);
    own.count -= plane;
    if (p.kind == kMixed || (p.channels_of && group)) side.channel = own.last();
    strides[count] = own;
    sides[count++] = &side;
  }

  // Dims up to `keep` stay apart from those after them: weights and indices change with them.
  void finish(int keep) {
    const unsigned code = p.views ? p.code(0) : p.volumes ? 4 : 0;
    const int64_t sizes[3] = {p.D, p.H, p.W};
    if (p.volumes)
      p.Do = sizes[code & 3], p.Ho = sizes[code >> 2 & 3], p.Wo = sizes[3 - (code & 3) - (code >> 2 & 3)];
    else
      p.Ho = code & kTranspose ? p.W : p.H, p.Wo = code & kTranspose ? p.H : p.W;
    if (p.channels_of) split_channels(keep);
    if (p.kind == kMixed) {  // a plane stands for all channels of a field
      lead.last() /= p.channels;
      for (int k = 0; k < count; ++k) strides[k].last() *= p.channels;
    }
    int n = lead.count;
    if (p.kind == kGrid && n > keep && lead[n - 1] > 1 &&
        all([&](const Side& s, const Ints& st) { return st[n - 1] == 1 && s.col >= lead[n - 1]; })) {
      p.V = lead[--n];  // channels-last
    }
    if (plane == 0 && !p.permutes()) {  // the trailing dims that lie without gaps are one row
      while (n > keep && all([&](const Side&, const Ints& st) { return st[n - 1] == p.W; })) p.W *= lead[--n];
      p.Wo = p.W;
      for (int k = 0; k < count; ++k) sides[k]->row = p.W;
    }
    if (p.permutes()) n = find_rows(n);
    merge(n, keep);
    int64_t per = 1, columns = 1;
    for (int d = 0; d < n; ++d) (d < keep ? columns : per) *= lead[d];
    p.weight_columns = columns;
    p.planes_per_weight = p.planes_per_index = std::max<int64_t>(1, per);
    p.channel_planes = std::max<int64_t>(1, p.channels > 1 ? per / p.channels : per);
    if (p.V == 1 && plane == 2 && !p.volumes && p.in.row == 1 && p.in.col != 1) turn_source();
  }

  // What lies behind the permuted dim: rows that move as a whole, unless the moved entries are side by side. Returns how
  // many of the n other dims are left.
  int find_rows(int n) {
    while (n > permuted && lead[n - 1] == 1) --n;
    if (n == permuted || all([&](const Side& s, const Ints&) { return s.col == 1; })) return n;
    p.move_rows = true;
    p.Ho = p.H = p.W;
    p.W = 1;
    for (int k = 0; k < count; ++k) sides[k]->row = sides[k]->col, sides[k]->col = strides[k][n - 1];
    while (n > permuted && (lead[n - 1] == 1 || all([&](const Side& s, const Ints& st) { return st[n - 1] == s.col * p.W; }))) p.W *= lead[--n];
    p.Wo = p.W;
    return n;
  }

  // Outer dims: those of size one vanish, neighbours without gaps merge. The channels of a field stay apart. Matrices look
  // at one vector at a time, so that those of several weights may lie in one dim.
  void merge(int n, int keep) {
    int apart = -1;
    for (int d = 0; d < n; ++d) {
      if (lead[d] == 1) continue;
      const int last = p.dims - 1;
      if (p.channels_of && d == keep) apart = p.dims;
      const bool may = p.dims && (d != keep || p.kind == kMatrix) && last != apart;
      if (may && all([&](const Side& s, const Ints& st) { return s.outer[last] == st[d] * lead[d]; })) {
        p.size[last] *= lead[d];
      } else {
        p.size[p.dims++] = lead[d];
      }
      for (int k = 0; k < count; ++k) sides[k]->outer[p.dims - 1] = strides[k][d];
    }
  }

  // (lead…, fields · n channels) → (lead of the weights, n, lead…, fields): planes of one channel follow one another.
  void split_channels(int keep) {
    const int last = lead.count - 1;
    const auto split = [&](const Ints& from, int64_t channel, int64_t field) {
      Ints v = from.part(0, keep);
      v.values[v.count++] = channel;
      for (int d = keep; d < last; ++d) v.values[v.count++] = from[d];
      v.values[v.count++] = field;
      return v;
    };
    for (int k = 0; k < count; ++k) strides[k] = split(strides[k], strides[k][last], strides[k][last] * p.channels);
    lead = split(lead, p.channels, lead[last] / p.channels);
  }

  template <class Test>
  bool all(const Test& test) const {
    for (int k = 0; k < count; ++k)
      if (!test(*sides[k], strides[k])) return false;
    return true;
  }

  // Sources whose columns are contiguous are read as their transposes, with other codes.
  void turn_source() {
    own_codes.assign(reinterpret_cast<const char*>(p.codes), p.order());
    for (char& c : own_codes) c = char((c ^ 1) & 1) | char((c & 2) << 1) | char((c & 4) >> 1);
    p.codes = reinterpret_cast<const uint8_t*>(own_codes.data());
    std::swap(p.H, p.W);
    std::swap(p.in.row, p.in.col);
    if (p.added < p.views) std::swap(p.plus.row, p.plus.col);
    if (out_of_views) std::swap(p.out.row, p.out.col);
  }

  template <class Kernel>
  void run(const Kernel& kernel) {
    const int64_t channels = p.kind == kMixed ? p.channels : 1;
    if (p.planes() * channels * p.D * p.H * p.W * p.V * p.views <= kHandsOver) return kernel(p);
    py::gil_scoped_release release;
    kernel(p);
  }
};

}  // namespace equikern

namespace pybind11 {
namespace detail {

template <>
struct type_caster<equikern::Ints> {
  PYBIND11_TYPE_CASTER(equikern::Ints, const_name("tuple[int, ...]"));
  bool load(handle from, bool) {
    if (!PyTuple_Check(from.ptr())) return false;
    const Py_ssize_t count = PyTuple_GET_SIZE(from.ptr()), most = equikern::kMaxDims + 1;
    if (count > most) throw value_error("expected at most " + std::to_string(most) + " dims, got " + std::to_string(count));
    for (Py_ssize_t k = 0; k < count; ++k) value.values[k] = equikern::read_int(from.ptr(), k);
    value.count = int(count);
    return true;
  }
};
template <>
struct type_caster<equikern::Views> {
  PYBIND11_TYPE_CASTER(equikern::Views, const_name("tuple"));
  bool load(handle from, bool) {
    if (!PyTuple_Check(from.ptr())) return false;
    value.read(from.ptr());
    return true;
  }
};

}  // namespace detail
}  // namespace pybind11
