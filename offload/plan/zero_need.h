// offload/plan/zero_need.h
//
// "Which stage do I need?": what every GPU, and every host's RAM and drives, must hold of a model
// that is trained on several GPUs, for each ZeRO stage and each tier that optimizer states and
// parameters may live on; which of these ways fit a machine, and which of those to take. Nothing
// about activations, and nothing about time. Pure.
//
// Every figure is a sum of terms, and its formula is written from the same terms. With P parameters
// on N GPUs, g of them on each host, T parameters in the two largest units, L in the largest, B the
// buffers that each rank moves things through, and E those that gradients pass through among ranks:
// a stage says what is divided by N (nothing; states; and gradients; and parameters). What was
// gathered for compute, or made by it and not yet sent on, is of two units at a time: it moves, the
// rest is kept. RAM and drives are shared by the ranks of a host, so that a rank's part is there g
// times, but parameters that are kept in RAM are once. States on a drive leave gradients and
// buffers in RAM, and gradients too can go to the drive.
//
// E is as Placement has it: kStagingBuffers of the largest unit's gradients, kExchanges of what the
// others have of this rank's shard of it, and, where parameters that ranks share can't be sent from
// where they live, its shard of them. It is where compute is.
//
// P/N is whole parameters, the first ranks have those that are left over. What is there in the end
// lies in whole cells (core/grid.h), which adds little to all but tiny models.

#ifndef SLUICE_OFFLOAD_PLAN_ZERO_NEED_H_
#define SLUICE_OFFLOAD_PLAN_ZERO_NEED_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "core/types.h"
#include "offload/plan/placement.h"
#include "offload/plan/unit_types.h"
#include "optim/state_format.h"

namespace sluice {

inline constexpr int kZeroStages = 4;
inline constexpr int64_t kGpusMax = int64_t{1} << 16;
inline constexpr int64_t kGpusPerHostMax = 1024;

// What is partitioned, and how far down states and parameters go.
struct ZeroWay {
  int stage = 0;
  Tier states = Tier::kHbm;
  Tier params = Tier::kHbm;  // another at stage 3 only

  friend bool operator==(const ZeroWay&, const ZeroWay&) = default;
};

// All there are: by stage, then states, then parameters, the nearest tier first.
std::vector<ZeroWay> ZeroWays();

struct ZeroModel {
  std::vector<int64_t> units;  // parameters of each; at least one, together at most kElementsMax
  UnitTypes types{FloatType::kBf16, FloatType::kBf16};
  std::shared_ptr<const StateFormat> format;
  int64_t gpus = 1;           // to kGpusMax
  int64_t gpus_per_host = 1;  // to kGpusPerHostMax; the last host may have fewer
  // Where ranks exchange: kPinned where they compute in RAM, in place (Placement::exchange_tier).
  Tier exchange_tier = Tier::kHbm;
  // The most that a chunk spans in a layout (ModelLayout) of so many parameters, whose states are
  // no lower than `states`.
  std::function<int64_t(int64_t parameters, Tier states)> chunk_elements;

  int64_t parameters() const;         // P
  int64_t two_units() const;          // T
  int64_t largest_unit() const;       // L
  int64_t share(int64_t rank) const;  // P/N
};

// The parameters that a term is about.
enum class ZeroOf : uint8_t {
  kAll,          // P
  kRank,         // P/N
  kHost,         // P g/N
  kAllEachRank,  // P g
  kTwoUnits,     // T
  kLargest,      // L
  kLargestRank,  // L/N
  kLargestRest,  // L/N, of all ranks but one
  kBuffers,      // B g: no parameters
  kRooms         // (B+E) g: likewise
};

struct ZeroTerm {
  ZeroOf of;
  Bytes cell;   // of kCellElements parameters
  Bytes bytes;  // of all that it is about
};

struct ZeroFigure {
  std::vector<ZeroTerm> terms;

  Bytes sum() const;
  std::string formula() const;  // "(2+2)P + 12P/N"; "0" without terms
};

struct ZeroNeed {
  ZeroWay way;
  ZeroFigure gpu_kept;
  ZeroFigure gpu_moving;
  ZeroFigure exchange;  // E, of a rank: in HBM, or in `ram` too
  Tier exchange_tier;
  ZeroFigure ram;   // of a host
  ZeroFigure nvme;  // of a host
  // With gradients on the drive, where states are; else as above.
  ZeroFigure ram_least;
  ZeroFigure nvme_most;
  Bytes buffers;      // B
  Bytes kept_in_ram;  // ram, without buffers and exchange

  Bytes gpu_exchange() const { return exchange_tier == Tier::kHbm ? exchange.sum() : Bytes(0); }
  Bytes gpu() const { return gpu_kept.sum() + gpu_moving.sum() + gpu_exchange(); }
};

// Of rank `rank`, and of its host, for all ZeroWays(); no other needs more than rank 0.
// Preconditions, checked: the bounds above. Errors: those of ModelLayout::Make, of one rank's
// share.
absl::StatusOr<std::vector<ZeroNeed>> ZeroNeedsOf(const ZeroModel& model, int64_t rank = 0);

// What there is; none: not known.
struct ZeroMachine {
  std::optional<Bytes> hbm;   // of a GPU
  std::optional<Bytes> ram;   // of a host
  std::optional<Bytes> nvme;  // of a host
  int headroom_percent = 20;  // of HBM that is left to activations, where a way fits well
};

enum class ZeroFit : uint8_t { kFits, kTight, kUnknown, kTooLarge };

struct ZeroVerdict {
  ZeroFit fit = ZeroFit::kFits;
  Tier tier = Tier::kHbm;  // that is unknown or too small
  bool spills = false;     // fits with gradients on the drive only
};

// kTight: it fits, but leaves less of HBM than the headroom. Buffers alone ask for no RAM that is
// not known.
ZeroVerdict JudgeZero(const ZeroNeed& need, const ZeroMachine& machine);

// The place of the way to take, of those that fit: what leaves least of all that is offloaded (by
// the farthest tier that is used, then by what goes there, then by how many bytes it is on NVMe and
// in RAM), and of these the lowest stage. If none fits well, of those that are tight the one that
// leaves most of HBM. None: nothing is known to fit.
std::optional<size_t> RecommendZero(std::span<const ZeroNeed> needs, const ZeroMachine& machine);

}  // namespace sluice

#endif  // SLUICE_OFFLOAD_PLAN_ZERO_NEED_H_
