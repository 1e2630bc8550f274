// Where the elements of a vector of a result are staged, and how it is written at once: whole planes follow each other
// in memory whatever their rows, so a vector may begin in one row, or plane, and end in another.
#pragma once

#include "staging.h"

namespace equikern {
namespace cuda {

// The 16-byte vector of a result that one thread forms of staged elements, for every view. Its run starts `shift`
// elements after a 16-byte boundary; the first and the last vector may hold fewer elements.
template <class E>
struct Places {
  static constexpr int kCount = kLanes<E>;
  // Neighbours' vectors are 16 bytes apart: read in the same order, every eighth of them met in a bank. So each eight
  // threads begin with another unit: an element, or a word of smaller ones.
  static constexpr int kPerUnit = sizeof(E) < 4 ? 4 / sizeof(E) : 1, kUnits = kCount / kPerUnit;
  using Unit = typename std::conditional<sizeof(E) < 4, uint32_t, E>::type;
  // Two elements share a register, 16 bits each, which is enough for shared memory: what is added to both, or
  // multiplied with both, carries nothing from one to the other in the end.
  static constexpr int kPairs = (kCount + 1) / 2;

  int shift = -1, first, turn;  // turn: of the unit that is read first
  bool whole;
  uint32_t plane[kPairs], i[kPairs], j[kPairs];  // bytes before its plane, its row, its column counted from 1

  // How many vectors a run touches at most, wherever it starts.
  static EQK_HD int most(int elements) { return (elements + 2 * kCount - 2) / kCount; }

  // Which element of the vector is read as number k.
  EQK_HD int element(int k) const { return ((k / kPerUnit) ^ turn) * kPerUnit + k % kPerUnit; }

  EQK_HD void find(const Plan& p, int number, int shift_, int elements) {
    const int size = static_cast<int>(p.H * p.W), across = static_cast<int>(p.out_W);
    shift = shift_;
    first = number * kCount - shift;
    turn = static_cast<unsigned>(number) / 8 % kUnits;
    whole = first >= 0 && first + kCount <= elements;
    // Counted from 1, as the divider wants it.
    int n[2 * kPairs];
    for (int k = 0; k < 2 * kPairs; ++k) n[k] = 1 + first + element(k % kCount);
    if (!whole)
      for (int k = 0; k < 2 * kPairs; ++k) n[k] = n[k] < 1 ? 1 : n[k] < elements ? n[k] : elements;
    for (int pair = 0; pair < kPairs; ++pair) {
      plane[pair] = i[pair] = j[pair] = 0;
      for (int k = 0; k < 2; ++k) {
        const uint32_t before = divide_before(n[2 * pair + k], p.by_plane), in_plane = n[2 * pair + k] + before * -size;
        const uint32_t row = divide_before(in_plane, p.by_out_W);
        plane[pair] += before << (16 * k);
        i[pair] += row << (16 * k);
        j[pair] += (in_plane + row * -across) << (16 * k);
      }
      plane[pair] *= p.plane_bytes;
    }
  }

  static EQK_HD Unit joined(const E* values) {
    if constexpr (sizeof(E) < 4) {
      Unit unit = 0;
      for (int k = 0; k < kPerUnit; ++k) {
        typename std::conditional<sizeof(E) == 1, uint8_t, uint16_t>::type bits;
        memcpy(&bits, values + k, sizeof(E));
        unit |= static_cast<Unit>(bits) << (8 * sizeof(E) * k);
      }
      return unit;
    } else {
      return *values;
    }
  }

  // A byte of shared memory, or bytes from one, for both elements of a pair.
  static EQK_HD uint32_t both(int bytes) { return bytes * 0x10001u; }

  // The elements that a view shows, in the order in which they are read, of planes that start at a byte of shared memory;
  // that byte and the view's origin are given for both.
  EQK_HD void read(const unsigned char* shared, uint32_t start, const LinearView& view, E (&values)[kCount]) const {
    const uint32_t origin = start + view.origin;
    for (int pair = 0; pair < kPairs; ++pair) {
      const uint32_t both = plane[pair] + origin + i[pair] * view.down + j[pair] * view.right;
      values[2 * pair] = *reinterpret_cast<const E*>(shared + (both & 0xFFFF));
      if (2 * pair + 1 < kCount) values[2 * pair + 1] = *reinterpret_cast<const E*>(shared + (both >> 16));
    }
  }

  // Writes elements that come in that order.
  EQK_HD void write(const E (&values)[kCount], int elements, E* run) const {
    if (whole) return write_whole(values, run + first);
#if defined(__CUDA_ARCH__)
#pragma unroll
#endif
    for (int k = 0; k < kCount; ++k) {
      const int n = first + element(k);
      if (n >= 0 && n < elements) run[n] = values[k];
    }
  }

  // All of them, at a 16-byte boundary.
  EQK_HD void write_whole(const E (&values)[kCount], E* to) const {
    Unit unit[kUnits];
    for (int u = 0; u < kUnits; ++u) unit[u] = joined(values + u * kPerUnit);
    for (int bit = 1; bit < kUnits; bit *= 2)
      for (int u = 0; u < kUnits; ++u) {
        if (u & bit) continue;
        const Unit low = unit[u], high = unit[u ^ bit];
        unit[u] = turn & bit ? high : low;
        unit[u ^ bit] = turn & bit ? low : high;
      }
    Bytes16 bytes;
    memcpy(&bytes, unit, sizeof(bytes));
    store_group(reinterpret_cast<Bytes16*>(to), bytes);
  }
};

}  // namespace cuda
}  // namespace equikern
