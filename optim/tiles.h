// optim/tiles.h
//
// Loops over tiles: pieces so small that what is made of one, in fp32, stays in L1.

#ifndef SLUICE_OPTIM_TILES_H_
#define SLUICE_OPTIM_TILES_H_

#include <algorithm>
#include <cstddef>

namespace sluice {

inline constexpr size_t kTile = 1024;  // elements

// f(first, count) for each tile of `n` elements.
template <typename F>
void ForTiles(size_t n, F&& f) {
  for (size_t first = 0; first < n; first += kTile) f(first, std::min(kTile, n - first));
}

}  // namespace sluice

#endif  // SLUICE_OPTIM_TILES_H_
