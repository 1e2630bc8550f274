// From sizes and strides as torch gives them to a kernel call in canonical form.
#pragma once

#include <pybind11/pybind11.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "cpu/problem.h"

namespace py = pybind11;

namespace equikern {

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
inline Ints read(const py::tuple& t) {
  Ints v;
  if (t.size() > kMaxDims + 3) throw py::value_error("expected at most " + std::to_string(kMaxDims + 3) + " dims, got " + std::to_string(t.size()));
  for (; v.count < int(t.size()); ++v.count) {
    const int64_t n = PyLong_AsLongLong(PyTuple_GET_ITEM(t.ptr(), Py_ssize_t(v.count)));
    if (n == -1 && PyErr_Occurred()) throw py::error_already_set();
    v.values[v.count] = n;
  }
  return v;
}

inline char* pointer(uintptr_t address) { return reinterpret_cast<char*>(address); }

// Fills in a problem from the sizes of one sample and each side's strides of it. `spatial` tells what the views do: 2 or 3
// for grids (lead…, H, W) or (lead…, D, H, W) with a code for each, 0 for views that are all the same, below zero the dim
// that they permute, counted from the end, with what each moves (Moves) in place of its code. Fields (lead…, channels,
// H, W) add 256 · n for channels in groups of n, and to the codes n int32 for each view (Problem::channels_of). Those of
// volumes add kMixes, too, where matrices mix the channels, and to the codes the address of the matrices (Problem::mats).
constexpr int kMixes = 1 << 24;

struct Builder {
  RowProblem p;
  int spatial;
  Ints lead;                  // sizes of the other dims
  int before;                 // of them before the permuted one
  Side* sides[3];
  Ints strides[3];            // of each side's other dims
  int count = 0;
  std::string own_codes;      // codes seen from a transposed source, or every view's twice
  std::vector<Moves> moves;
  std::vector<int32_t> channels;

  Builder(const Ints& sample, int kind, const std::string& codes, int dtype, int threads) : spatial(kind < 0 ? kind : kind & 255) {
    static const uint8_t identity[kMaxViews] = {};
    const size_t n = kind < 0 ? 0 : size_t((kind & (kMixes - 1)) >> 8);
    const bool mixes = kind >= 0 && kind & kMixes;
    p.views = mixes ? int(codes.size() - sizeof p.mats) : int(codes.size() / (spatial < 0 ? sizeof(Moves) : 1 + n * sizeof(int32_t)));
    if (p.views > kMaxViews) throw py::value_error("at most " + std::to_string(kMaxViews) + " views, got " + std::to_string(p.views));
    p.dtype = Dtype(dtype);
    p.codes = reinterpret_cast<const uint8_t*>(codes.data());
    p.threads = std::max(1, threads);
    before = sample.count - std::abs(spatial);
    lead = sample.part(0, before);
    if (spatial > 0) p.H = sample[sample.count - 2], p.W = sample[sample.count - 1];
    if (spatial == 3) p.D = sample[before], p.volumes = true;
    p.channels = std::max<int64_t>(1, int64_t(n));
    if (mixes) std::memcpy(&p.mats, codes.data() + p.views, sizeof p.mats);
    if (n && !mixes) {
      channels.resize(p.views * n);
      std::memcpy(channels.data(), codes.data() + p.views, channels.size() * sizeof(int32_t));
      p.channels_of = channels.data();
      for (const int32_t c : channels) p.signs |= c < 0;
    }
    if (spatial < 0) {
      p.codes = identity;
      moves.resize(p.views);
      std::memcpy(moves.data(), codes.data(), codes.size());
      p.moves = moves.data();
      p.W = sample[before];
      lead = without(sample, before);
    }
  }

  static Ints without(const Ints& all, int dim) {
    Ints v = all.part(0, dim);
    for (int k = dim + 1; k < all.count; ++k) v.values[v.count++] = all[k];
    return v;
  }

  // What is added to every view of p.in: as many views more, all of p.other.
  void add_to_views(uintptr_t data, const Ints& s) {
    add(p.other, data, s, false);
    if (p.channels_of) p.other.channel = s[s.count - spatial - 1];
    const auto twice = [](auto& each) {
      const auto once = each;
      each.insert(each.end(), once.begin(), once.end());
    };
    own_codes.assign(reinterpret_cast<const char*>(p.codes), p.views);
    twice(own_codes), twice(channels), twice(moves);
    p.codes = reinterpret_cast<const uint8_t*>(own_codes.data());
    if (p.channels_of) p.channels_of = channels.data();
    if (p.moves) p.moves = moves.data();
    p.added = p.views;
    p.views *= 2;
  }

  // `group` tells whether the strides begin with the group axis.
  void add(Side& side, uintptr_t data, const Ints& s, bool group) {
    side.data = pointer(data);
    side.group = group ? s[0] : 0;
    if (spatial > 0) side.row = s[s.count - 2], side.col = s[s.count - 1];
    else side.row = side.col = 1;
    if (spatial == 3) side.slab = s[s.count - 3];
    if (p.mats || (p.channels_of && group)) side.channel = s[s.count - spatial - 1];
    if (spatial < 0) side.col = s[before + group];
    strides[count] = spatial < 0 ? without(s.part(group, s.count), before) : s.part(group, s.count - spatial);
    sides[count++] = &side;
  }

  // Dims up to `keep` stay apart from those after them: weights and indices change with them.
  void finish(int keep) {
    const bool turned = p.views && (p.codes[0] & 1);
    p.Ho = turned && p.H != p.W ? p.W : p.H;
    p.Wo = turned && p.H != p.W ? p.H : p.W;
    if (p.volumes) {
      const int64_t sizes[3] = {p.D, p.H, p.W};
      const unsigned code = p.views ? p.codes[0] : 4;
      p.Do = sizes[code & 3], p.Ho = sizes[code >> 2 & 3], p.Wo = sizes[3 - (code & 3) - (code >> 2 & 3)];
    }
    if (p.channels_of) split_channels(keep);
    if (p.mats) {  // a plane stands for all channels of a field
      const int last = lead.count - 1;
      lead.values[last] /= p.channels;
      for (int k = 0; k < count; ++k) strides[k].values[last] *= p.channels;
    }
    int n = lead.count;
    auto all = [&](auto test) { for (int k = 0; k < count; ++k) if (!test(*sides[k], strides[k])) return false; return true; };
    if (spatial > 0 && !p.channels_of && !p.mats && n > keep && lead[n - 1] > 1 &&
        all([&](const Side& s, const Ints& st) { return st[n - 1] == 1 && s.col >= lead[n - 1]; })) {
      p.V = lead[n - 1];  // channels-last
      --n;
    }
    if (spatial == 0) {  // no plane: the trailing dims that lie without gaps are one row
      while (n > keep && all([&](const Side& s, const Ints& st) { return st[n - 1] == p.W; })) p.W *= lead[--n];
      p.Wo = p.W;
      for (int k = 0; k < count; ++k) sides[k]->row = p.W;
    }
    // What lies behind the permuted dim: rows that move as a whole, unless the moved entries are side by side.
    while (spatial < 0 && n > before && lead[n - 1] == 1) --n;
    if (spatial < 0 && n > before && !all([&](const Side& s, const Ints&) { return s.col == 1; })) {
      p.move_rows = true;
      p.Ho = p.H = p.W;
      p.W = 1;
      for (int k = 0; k < count; ++k) sides[k]->row = sides[k]->col, sides[k]->col = strides[k][n - 1];
      while (n > before && (lead[n - 1] == 1 || all([&](const Side& s, const Ints& st) { return st[n - 1] == s.col * p.W; }))) p.W *= lead[--n];
      p.Wo = p.W;
    }
    // Outer dims: those of size one vanish, neighbours without gaps merge. The channels of a field stay apart.
    int apart = -1;
    for (int d = 0; d < n; ++d) {
      if (lead[d] == 1) continue;
      const int last = p.dims - 1;
      if (p.channels_of && d == keep) apart = p.dims;
      if (p.dims && d != keep && last != apart && all_merge(d, last)) {
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
    p.channel_planes = std::max<int64_t>(1, p.channels > 1 ? per / p.channels : per);
    if (p.V == 1 && spatial == 2 && p.in.row == 1 && p.in.col != 1) turn_source();
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

  bool all_merge(int d, int last) const {
    for (int k = 0; k < count; ++k)
      if (sides[k]->outer[last] != strides[k][d] * lead[d]) return false;
    return true;
  }

  // Sources whose columns are contiguous are read as their transposes, with other codes.
  void turn_source() {
    own_codes.assign(reinterpret_cast<const char*>(p.codes), p.views);
    for (char& c : own_codes) c = char((c ^ 1) & 1) | char((c & 2) << 1) | char((c & 4) >> 1);
    p.codes = reinterpret_cast<const uint8_t*>(own_codes.data());
    std::swap(p.H, p.W);
    std::swap(p.in.row, p.in.col);
    if (p.added < p.views) std::swap(p.other.row, p.other.col);
  }

  template <class Kernel>
  void run(const Kernel& kernel) {
    const int64_t work = p.planes() * (p.mats ? p.channels : 1) * p.D * p.H * p.W * p.V * p.views;
    if (work <= 65536) {  // shorter than handing over the GIL
      kernel(p);
    } else {
      py::gil_scoped_release release;
      kernel(p);
    }
  }
};

inline Ints sample_of(const Ints& shape) { return shape.part(1, shape.count); }

inline bool empty(const Ints& shape) { return std::find(shape.values, shape.values + shape.count, 0) != shape.values + shape.count; }

}  // namespace equikern
