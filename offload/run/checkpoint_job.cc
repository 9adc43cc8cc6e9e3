#include "offload/run/checkpoint_job.h"

#include <algorithm>
#include <chrono>
#include <string_view>

#include "fmt/format.h"
#include "fmt/ranges.h"

namespace sluice {

void CheckpointJob::Do(Background::Work work, Done then) {
  auto self = shared_from_this();  // also while the work goes on and nobody listens
  seams_.background->Do([self, work = std::move(work)] { return work(); },
                        [self, then = std::move(then)](const absl::Status& status) {
                          if (!self->dropped_) then(status);
                        });
}

void CheckpointJob::Vote(const absl::Status& status, uint64_t and_what, Done then) {
  if (seams_.votes == nullptr) return then(status);
  const auto named = [](std::string_view what, const std::vector<uint32_t>& ranks) {
    return fmt::format("rank{} {} {}", ranks.size() > 1 ? "s" : "", fmt::join(ranks, ", "), what);
  };
  const uint64_t what = (what_ ^ (and_what * 0x9E3779B97F4A7C15u)) * 0x9E3779B97F4A7C15u >> 33;
  seams_.votes->Cast(
      status.ok(), what,
      [self = shared_from_this(), status, named,
       then = std::move(then)](const Votes::Verdict& verdict) {
        if (self->dropped_) return;
        if (verdict.ok() || !status.ok()) return then(status);
        then(verdict.failed.empty()
                 ? absl::FailedPreconditionError(
                       named("saves or loads something else: all must do the same at the same "
                             "time, of one checkpoint",
                             verdict.elsewhere))
                 : absl::UnavailableError(named("could not, and says why there", verdict.failed)));
      });
}

void CheckpointJob::GoesOn() {
  const TimePoint now = seams_.context.clock->Now();
  if (seams_.votes == nullptr || now - went_on_ < std::chrono::seconds(5)) return;
  went_on_ = now;
  seams_.votes->GoesOn();
}

void CheckpointJob::MakeImages() {
  size_t largest = 0;
  for (const ChunkLayout& chunk : layout().chunks())
    largest = std::max(largest, ImageBytes(layout(), chunk));
  for (size_t i = 0; i < kImages; ++i) {
    images_.push_back(std::make_unique<std::vector<std::byte>>(largest));
    free_images_.push_back(images_.back().get());
  }
}

std::vector<std::byte>* CheckpointJob::TakeImage() {
  if (free_images_.empty()) return nullptr;
  std::vector<std::byte>* const image = free_images_.back();
  free_images_.pop_back();
  return image;
}

void CheckpointJob::AccessImage(ChunkIndex chunk, std::vector<std::byte>* image, bool write,
                                Done then) {
  const ChunkLayout& c = layout().chunk(chunk);
  ValueRequest request{.write = write,
                       .tensor = layout().runs(c).front().tensor,
                       .data = image->data(),
                       .image_of = chunk,
                       .done = {}};
  request.done = [self = shared_from_this(), then = std::move(then)](const absl::Status& status) {
    if (!self->dropped_) then(status);
  };
  seams_.values->Start(std::move(request));
}

}  // namespace sluice
