#include "offload/views.h"

#include <unistd.h>

#include <map>
#include <mutex>
#include <utility>
#include <vector>

#include "core/status.h"
#include "fmt/format.h"

namespace sluice {

// What views and the runtime share; lives as long as either.
struct Views::Shared final : Event {
  struct Shown {
    std::byte* address = nullptr;
    int64_t elements = 0;
  };

  void Handle() override {
    {
      const std::lock_guard lock(mutex);
      posted = false;
    }
    on_death();
  }

  mutable std::mutex mutex;
  std::shared_ptr<Arena> arena;               // constant
  FloatType type;                             // constant
  pid_t pid;                                  // constant
  std::function<void()> on_death;             // control thread
  Inbox* inbox;                               // guarded by mutex; null once the runtime is gone
  bool posted = false;                        // guarded by mutex
  std::vector<Shown> shown;                   // guarded by mutex; by unit
  std::map<const std::byte*, int64_t> alive;  // guarded by mutex; entries stay
};

namespace {

// One view: the tensor that is passed, and what it needs alive.
struct View {
  DlManagedTensor tensor{};
  int64_t shape = 0;
  std::shared_ptr<void> keep;
};

}  // namespace

Views::Views(std::shared_ptr<Arena> arena, FloatType type, Inbox* inbox,
             std::function<void()> on_death)
    : shared_(std::make_shared<Shared>()) {
  shared_->arena = std::move(arena);
  shared_->type = type;
  shared_->pid = getpid();
  shared_->on_death = std::move(on_death);
  shared_->inbox = inbox;
}

Views::~Views() {
  const std::lock_guard lock(shared_->mutex);
  shared_->inbox = nullptr;
  shared_->shown.clear();
}

void Views::Show(UnitIndex unit, std::byte* address, int64_t elements) {
  const std::lock_guard lock(shared_->mutex);
  if (shared_->shown.size() <= unit.value()) shared_->shown.resize(unit.value() + 1);
  shared_->shown[unit.value()] = {address, elements};
  shared_->alive.try_emplace(address, 0);
}

void Views::Hide(UnitIndex unit) {
  const std::lock_guard lock(shared_->mutex);
  shared_->shown[unit.value()] = {};
}

bool Views::Shown(UnitIndex unit) const {
  const std::lock_guard lock(shared_->mutex);
  return unit.value() < shared_->shown.size() && shared_->shown[unit.value()].address != nullptr;
}

absl::StatusOr<DlManagedTensor*> Views::MakeView(UnitIndex unit) {
  auto view = std::make_unique<View>();
  {
    const std::lock_guard lock(shared_->mutex);
    if (unit.value() >= shared_->shown.size() || shared_->shown[unit.value()].address == nullptr) {
      return absl::FailedPreconditionError(fmt::format(
          "unit {} is not acquired: wait for the ticket of sluice_acquire first", unit.value()));
    }
    const Shared::Shown& shown = shared_->shown[unit.value()];
    view->shape = shown.elements;
    view->tensor.dl_tensor.data = shown.address;
    ++shared_->alive[shown.address];
  }
  view->keep = shared_;
  DlTensor& t = view->tensor.dl_tensor;
  t.device = {.device_type = 1, .device_id = 0};
  t.ndim = 1;
  t.dtype = {.code = static_cast<uint8_t>(shared_->type == FloatType::kBf16 ? 4 : 2),
             .bits = static_cast<uint8_t>(8 * SizeOf(shared_->type)),
             .lanes = 1};
  t.shape = &view->shape;
  view->tensor.manager_ctx = view.get();
  view->tensor.deleter = [](DlManagedTensor* self) {
    auto* dying = static_cast<View*>(self->manager_ctx);
    auto* shared = static_cast<Shared*>(dying->keep.get());
    if (getpid() != shared->pid) return;  // a forked child: the memory isn't ours
    {
      const std::lock_guard lock(shared->mutex);
      const bool last = --shared->alive[static_cast<std::byte*>(self->dl_tensor.data)] == 0;
      if (last && shared->inbox != nullptr && !std::exchange(shared->posted, true))
        shared->inbox->Post(shared);
    }
    delete dying;
  };
  return &view.release()->tensor;
}

int64_t Views::Alive(const std::byte* address) const {
  const std::lock_guard lock(shared_->mutex);
  const auto it = shared_->alive.find(address);
  return it == shared_->alive.end() ? 0 : it->second;
}

}  // namespace sluice
