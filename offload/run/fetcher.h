// offload/run/fetcher.h
//
// Brings one unit's parameters, or this rank's shard of them, from their home (pinned memory or
// NVMe) into HBM. From pinned memory that is one copy, or two of a shard; from NVMe it is, a
// buffer's worth of neighbouring chunks at a time, reads into the buffer, checks on workers and a
// copy; several such pieces are under way at once. Copies wait for whatever StreamKind::kFetch was
// told to wait for before.
//
// Threads: the control thread. Allocates at construction only.

#ifndef SLUICE_OFFLOAD_RUN_FETCHER_H_
#define SLUICE_OFFLOAD_RUN_FETCHER_H_

#include <memory>
#include <vector>

#include "offload/run/context.h"

namespace sluice {

class Fetcher {
 public:
  class Observer {
   public:
    virtual ~Observer() = default;
    // All of the unit is on its way, on the device's stream for fetches. Not called if some of it
    // can't be. Perhaps from within Fetch.
    virtual void OnEnqueued(UnitIndex unit) = 0;
    virtual void OnFetched(UnitIndex unit, const absl::Status& status) = 0;
  };

  Fetcher(const Context& context, Observer* observer);
  ~Fetcher();

  // Fills `to` with the unit's parameters, or with a shard in its place; with nothing if that is
  // sent from its home: all the same it waits for the users of `to`. Not twice at a time for one
  // unit; the home must not be written meanwhile.
  void Fetch(UnitIndex unit, std::byte* to) { Start(unit, to, false); }
  // The same of a shard that is not sent from its home, and `to` becomes what its home would be.
  void FetchHome(UnitIndex unit, std::byte* to) { Start(unit, to, true); }

  int active() const { return active_; }

 private:
  struct UnitFetch;
  class Piece;

  void Start(UnitIndex unit, std::byte* to, bool as_home);
  void Copy(UnitFetch* fetch);
  void NextPieces();
  void EndPiece(Piece* piece, const absl::Status& status);
  void End(UnitFetch* fetch);

  const Context context_;
  Observer* const observer_;
  std::vector<std::unique_ptr<UnitFetch>> fetches_;  // by unit
  std::vector<std::unique_ptr<Piece>> pieces_;
  std::vector<Piece*> free_pieces_;
  std::vector<UnitFetch*> hungry_;  // have pieces left that none has taken, first come first
  int active_ = 0;
  Counter* const fetched_bytes_;
  Counter* const fetches_count_;
  TrackId track_ = 0;
};

}  // namespace sluice

#endif  // SLUICE_OFFLOAD_RUN_FETCHER_H_
