// comm/local_part.h
//
// How an operation is carried out where the memory of all ranks is at hand: in one process, real or
// simulated. Every byte is copied once, from where it is sent to where it is received; sums are
// those of ordered_reduce.h, whatever pieces the ranks' memory is in.
//
// Threads: one at a time. Allocates when it is made.

#ifndef SLUICE_COMM_LOCAL_PART_H_
#define SLUICE_COMM_LOCAL_PART_H_

#include <cstddef>
#include <span>
#include <vector>

#include "comm/comm_op.h"
#include "comm/rank.h"

namespace sluice {

// Walks over the bytes of some views.
template <typename View>
class ViewCursor {
 public:
  ViewCursor() = default;
  explicit ViewCursor(std::span<const View> views, size_t skip = 0) : views_(views) {
    Advance(skip);
  }

  // What lies at hand; empty at the end only.
  View here() const { return here_; }
  void Advance(size_t bytes) {
    while (bytes >= here_.size()) {
      bytes -= here_.size();
      here_ = {};
      if (views_.empty()) return;
      here_ = views_.front();
      views_ = views_.subspan(1);
    }
    here_ = here_.subspan(bytes);
  }

 private:
  View here_;
  std::span<const View> views_;
};

// What one rank does of an operation whose ranks have all come: it reads the others' memory and
// writes its own. In phases: none begins before all ranks have done the one before, and the views
// are in use until all have done the last.
class LocalPart {
 public:
  explicit LocalPart(uint32_t ranks) : from_(ranks), addends_(ranks) {}

  static int phases(CommKind kind) { return kind == CommKind::kAllReduce ? 2 : 1; }
  // `ops` are by rank, those of ranks that take part.
  void Do(Rank self, std::span<CommOp* const> ops, int phase);

 private:
  // Adds up `bytes` of what all send to `self`, those after the first `skip`.
  void Add(Rank self, std::span<CommOp* const> ops, size_t skip, size_t bytes);
  static void TakeSlices(Rank self, std::span<CommOp* const> ops);

  std::vector<ViewCursor<ConstMemoryView>> from_;  // by rank
  std::vector<const void*> addends_;
};

}  // namespace sluice

#endif  // SLUICE_COMM_LOCAL_PART_H_
