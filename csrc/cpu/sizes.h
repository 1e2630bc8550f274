// What calls are limited to, and the sizes by which they are cut and judged: elements, unless they are called bytes.
#pragma once

#include <cstdint>

namespace equikern {

constexpr int kMaxDims = 64;                  // of a tensor, as torch has it
constexpr int kMaxViews = 2048;               // groups of 1024, every view once more for what is added to it

constexpr int64_t kHandsOver = 65536;         // more than these are worth handing over the GIL
constexpr int64_t kShares = 32768;            // as many are worth starting threads
constexpr int64_t kPlane = 65536;             // of a plane that one core's L2 holds beside the result
constexpr int64_t kPart = 32768;              // of a part of a larger plane, of so many rows
constexpr int64_t kPartRows = 128;
// The side of a box of a volume: rows of a few cache lines on every axis, and less where sums in float32 have to fit into L2,
// or a face of the box were larger.
constexpr int64_t kSideBytes = 256, kSumSide = 32, kFace = 4096;
constexpr int64_t kBand = 16384;              // bytes that are handled while they are in L1
constexpr int64_t kLine = 64;                 // bytes of a cache line
constexpr int64_t kRowBlock = 2048;           // numbers of a row of logits that are handled while they are in L1
constexpr int64_t kSorted = 512;              // elements whose views are sorted at a time, at most
// Vectors that are in registers' order at a time. Of 32 bits: with 64 the compiler makes slower loops of the same source.
constexpr int kVectorBlock = 64;
constexpr int64_t kVectorShare = 4096;        // vectors of one unit of work, and of one partial dot
// How far ahead of the sums memory is fetched, since the hardware stops at each page: some rows, or where the views' planes
// are small the same place of the next ones, whichever way their rows are walked.
constexpr int64_t kAheadBytes = 4096, kSmallPlaneBytes = 256 << 10;
constexpr int64_t kWarmBytes = 1 << 20;       // of rows that fit into L2
constexpr int64_t kLeastCache = 16 << 20, kMostCache = 64 << 20;  // bytes beyond which results are written past the caches

}  // namespace equikern
