// comm/rank.h
//
// A rank: one of the runtimes that train one model together. Ranks of a group are numbered from 0;
// how many there are is a plain uint32_t, `ranks`.

#ifndef SLUICE_COMM_RANK_H_
#define SLUICE_COMM_RANK_H_

#include <cstdint>

#include "core/types.h"

namespace sluice {

using Rank = Strong<struct RankTag, uint32_t>;

inline constexpr uint32_t kRanksMax = 1u << 16;

}  // namespace sluice

#endif  // SLUICE_COMM_RANK_H_
