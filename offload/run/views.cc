#include "offload/run/views.h"

#include <unistd.h>

#include <algorithm>
#include <map>
#include <memory_resource>
#include <mutex>
#include <utility>

#include "absl/cleanup/cleanup.h"
#include "core/status.h"
#include "fmt/format.h"

namespace sluice {

// One view: the tensor that is passed, and what it needs alive.
struct Views::View {
  DlManagedTensor tensor{};
  int64_t shape = 0;
  std::shared_ptr<Shared> keep;  // while it is alive
};

// What views and the runtime share; lives as long as either.
struct Views::Shared final : Event {
  struct Shown {
    std::byte* address = nullptr;
    int64_t elements = 0;
    ElementType type = FloatType::kF32;
  };
  struct User {
    CallerStream stream;
    int acquired = 0;  // and not released
  };
  // What is known of an address.
  struct Slot {
    const std::byte* address = nullptr;  // once it has had a view
    int64_t uses = 0;                    // views and holds
    int64_t views = 0;
    int acquired = 0;   // by all users, and not released
    int releasing = 0;  // releases that may still fail, and then have acquired it as before
    bool shown = false;
    absl::InlinedVector<User, 2> users;
    int64_t deaths = 0;  // of views, not yet seen by the control thread
    Slot* next_dead = nullptr;

    // Streams that have released it are not asked any more once no view is alive: they may be gone.
    void ForgetUsers() {
      if (views > 0) return;
      const auto gone = [this](const User& user) { return !shown || user.acquired == 0; };
      users.erase(std::remove_if(users.begin(), users.end(), gone), users.end());
    }
  };

  void Handle() override {
    {
      const std::lock_guard lock(mutex);
      posted = false;  // here, where the inbox no longer has this event, and nowhere else
    }
    owner->Settle();
  }

  // `mutex` is held.
  void AddDeaths(Slot* slot, int64_t count) {
    if (slot->deaths == 0) slot->next_dead = std::exchange(dead, slot);
    slot->deaths += count;
  }

  // `mutex` is held. A view of the slot has died. Streams that may go are asked soon; the default
  // stream does not go.
  void Tell(const Slot& slot) {
    const auto may_go = [](const User& user) { return user.stream != CallerStream(); };
    if (heeded != nullptr && std::ranges::none_of(slot.users, may_go)) {
      quietly = true;
      if (!*heeded) return;
    }
    if (!std::exchange(posted, true)) inbox->Post(this);
  }

  // `mutex` is held. Null if the unit is not shown.
  const Shown* Find(UnitIndex unit) const {
    const bool known = unit.value() < shown.size() && shown[unit.value()].address != nullptr;
    return known ? &shown[unit.value()] : nullptr;
  }

  mutable std::mutex mutex;
  std::shared_ptr<Arena> arena;      // constant
  DlDevice device;                   // constant
  pid_t pid;                         // constant
  Views* owner;                      // control thread
  const std::atomic<bool>* heeded;   // constant; lives until `inbox` is null
  Inbox* inbox;                      // guarded by mutex; null once the runtime is gone
  bool posted = false;               // guarded by mutex
  std::vector<Shown> shown;          // guarded by mutex; by unit
  Slot* dead = nullptr;              // guarded by mutex; the first whose views have died
  std::atomic<bool> quietly{false};  // some may have died unheeded
  std::pmr::monotonic_buffer_resource slot_memory{size_t{128} << 10};  // guarded by mutex
  std::pmr::map<const std::byte*, Slot> slots{&slot_memory};  // guarded by mutex; entries stay
  std::vector<std::unique_ptr<View>> views;  // guarded by mutex; all there ever were
  std::vector<View*> free_views;             // guarded by mutex; of these
};

// Memory that is in use until a fence is complete: an operation that only waits for it.
struct Views::Hold final : Event {
  void Handle() override { owner->EndHold(this); }

  Views* owner = nullptr;
  const std::byte* address = nullptr;  // null while it is free
  Fence fence;
  DeviceOp wait;
};

namespace {

using Streams = absl::InlinedVector<CallerStream, 2>;

DlDataType DlTypeOf(ElementType type) {
  constexpr uint8_t kUInt = 1;
  constexpr uint8_t kFloat = 2;
  constexpr uint8_t kBfloat = 4;
  const uint8_t code = type.is_bytes()                     ? kUInt
                       : type.floats() == FloatType::kBf16 ? kBfloat
                                                           : kFloat;
  return {.code = code, .bits = static_cast<uint8_t>(8 * type.size()), .lanes = 1};
}

}  // namespace

Views::Views(std::shared_ptr<Arena> arena, Device* device, Inbox* inbox,
             std::function<void()> on_free, std::function<void(const absl::Status&)> on_error,
             const std::atomic<bool>* heeded)
    : shared_(std::make_shared<Shared>()),
      device_(device),
      inbox_(inbox),
      on_free_(std::move(on_free)),
      on_error_(std::move(on_error)) {
  shared_->arena = std::move(arena);
  shared_->device = device->dl_device();
  shared_->pid = getpid();
  shared_->owner = this;
  shared_->heeded = heeded;
  shared_->inbox = inbox;
}

Views::~Views() { End(); }

void Views::End() {
  const std::shared_ptr<Shared> shared = std::move(shared_);
  if (shared == nullptr) return;
  const std::lock_guard lock(shared->mutex);
  shared->inbox = nullptr;
  shared->shown.clear();
}

void Views::Show(UnitIndex unit, std::byte* address, int64_t elements, ElementType type,
                 CallerStream stream) {
  const std::lock_guard lock(shared_->mutex);
  if (shared_->shown.size() <= unit.value()) shared_->shown.resize(unit.value() + 1);
  Shared::Slot& slot = shared_->slots[address];
  auto user = std::ranges::find(slot.users, stream, &Shared::User::stream);
  if (user == slot.users.end()) user = &slot.users.emplace_back(Shared::User{stream});
  // Here nothing fails any more for want of memory.
  ++user->acquired;
  shared_->shown[unit.value()] = {address, elements, type};
  slot.shown = true;
  ++slot.acquired;
}

void Views::Hide(UnitIndex unit) {
  const std::lock_guard lock(shared_->mutex);
  Shared::Shown& shown = shared_->shown[unit.value()];
  Shared::Slot& slot = shared_->slots[shown.address];
  if (slot.acquired + slot.releasing > 0) return;
  shown = {};
  slot.shown = false;
  for (Shared::User& user : slot.users) user.acquired = 0;
  slot.ForgetUsers();
}

bool Views::dying() const {
  const std::lock_guard lock(shared_->mutex);
  return shared_->dead != nullptr;
}

bool Views::died_quietly() const { return shared_->quietly; }

bool Views::Shown(UnitIndex unit) const {
  const std::lock_guard lock(shared_->mutex);
  return shared_->Find(unit) != nullptr;
}

absl::StatusOr<Fences> Views::Record(std::span<const CallerStream> streams) const {
  Fences fences;
  for (CallerStream stream : streams) {
    SLUICE_ASSIGN_OR_RETURN(Fence fence, device_->RecordFence(stream));
    fences.push_back(std::move(fence));
  }
  return fences;
}

absl::StatusOr<Fences> Views::RecordRelease(UnitIndex unit, CallerStream stream) {
  Streams streams = {stream};
  {
    const std::lock_guard lock(shared_->mutex);
    const Shared::Shown* shown = shared_->Find(unit);
    if (shown == nullptr || shared_->slots[shown->address].acquired == 0) {
      return absl::FailedPreconditionError(
          fmt::format("unit {} is not acquired any more", unit.value()));
    }
    Shared::Slot& slot = shared_->slots[shown->address];
    const bool last = slot.acquired == 1;
    for (const Shared::User& user : slot.users) {
      if (last && user.acquired > 0 && user.stream != stream) streams.push_back(user.stream);
    }
    --slot.acquired;
    ++slot.releasing;
  }
  absl::StatusOr<Fences> fences;
  bool released = false;
  const absl::Cleanup settle = [&] {
    const std::lock_guard lock(shared_->mutex);
    // What is being released stays shown.
    Shared::Slot& slot = shared_->slots[shared_->Find(unit)->address];
    --slot.releasing;
    if (!released) {
      ++slot.acquired;
      return;
    }
    const auto user = std::ranges::find(slot.users, stream, &Shared::User::stream);
    if (user != slot.users.end() && user->acquired > 0) --user->acquired;
    slot.ForgetUsers();
  };
  fences = Record(streams);
  released = fences.ok();
  return fences;
}

absl::StatusOr<DlManagedTensor*> Views::MakeView(UnitIndex unit) {
  View* view = nullptr;
  {
    const std::lock_guard lock(shared_->mutex);
    const Shared::Shown* shown = shared_->Find(unit);
    // What was released may be shown for a while.
    if (shown == nullptr || shared_->slots[shown->address].acquired == 0) {
      return absl::FailedPreconditionError(fmt::format(
          "unit {} is not acquired: wait for the ticket of sluice_acquire first", unit.value()));
    }
    if (shared_->free_views.empty()) {
      // First, so that neither a deleter nor what follows needs memory.
      shared_->free_views.reserve(shared_->views.size() + 1);
      shared_->views.push_back(std::make_unique<View>());
      shared_->free_views.push_back(shared_->views.back().get());
    }
    view = shared_->free_views.back();
    shared_->free_views.pop_back();
    view->shape = shown->elements;
    view->tensor.dl_tensor.dtype = DlTypeOf(shown->type);
    view->tensor.dl_tensor.data = shown->address;
    Shared::Slot& slot = shared_->slots[shown->address];
    slot.address = shown->address;
    ++slot.uses;
    ++slot.views;
  }
  view->keep = shared_;
  DlTensor& t = view->tensor.dl_tensor;
  t.device = shared_->device;
  t.ndim = 1;
  t.shape = &view->shape;
  view->tensor.manager_ctx = view;
  view->tensor.deleter = [](DlManagedTensor* self) {
    auto* dying = static_cast<View*>(self->manager_ctx);
    if (getpid() != dying->keep->pid) return;  // a forked child: the memory isn't ours
    const std::shared_ptr<Shared> shared = std::move(dying->keep);
    {
      const std::lock_guard lock(shared->mutex);
      if (shared->inbox != nullptr) {
        Shared::Slot& slot = shared->slots[static_cast<const std::byte*>(self->dl_tensor.data)];
        shared->AddDeaths(&slot, 1);
        shared->Tell(slot);
      }
      shared->free_views.push_back(dying);
    }
  };
  return &view->tensor;
}

// A view that died leaves its memory in use until the streams that use it have passed the points
// where they are now. Where one can't be asked now, because it is being captured, all are asked
// again later; until then the memory stays in use, and for good if the device refuses.
void Views::Settle() {
  Shared::Slot* next;
  {
    const std::lock_guard lock(shared_->mutex);
    next = std::exchange(shared_->dead, nullptr);
    shared_->quietly = false;
  }
  bool freed = false;
  while (next != nullptr) {
    Shared::Slot& slot = *next;
    const std::byte* address;
    int64_t deaths;
    Streams streams;
    {
      const std::lock_guard lock(shared_->mutex);
      address = slot.address;
      deaths = std::exchange(slot.deaths, 0);
      next = slot.next_dead;
      for (const Shared::User& user : slot.users) streams.push_back(user.stream);
    }
    absl::StatusOr<Fences> fences = Record(streams);
    if (!fences.ok() && !absl::IsFailedPrecondition(fences.status())) {
      on_error_(Annotate(fences.status(), "asking the streams of a view that died"));
      continue;
    }
    if (!fences.ok()) {
      const std::lock_guard lock(shared_->mutex);
      shared_->AddDeaths(&slot, deaths);
      continue;
    }
    HoldUntil(address, *std::move(fences));
    const std::lock_guard lock(shared_->mutex);
    slot.views -= deaths;
    slot.uses -= deaths;
    slot.ForgetUsers();
    freed = slot.views == 0 || freed;
  }
  if (freed) on_free_();
}

void Views::HoldUntil(const std::byte* address, Fences fences) {
  for (Fence& fence : fences) {
    if (!fence.Complete()) HoldOne(address, std::move(fence));
  }
}

void Views::HoldOne(const std::byte* address, Fence fence) {
  if (free_holds_.empty()) {
    holds_.push_back(std::make_unique<Hold>());
    holds_.back()->owner = this;
    free_holds_.push_back(holds_.back().get());
  }
  Hold* hold = free_holds_.back();
  free_holds_.pop_back();
  hold->address = address;
  hold->fence = std::move(fence);
  hold->wait.stream = StreamKind::kFence;
  hold->wait.inbox = inbox_;
  hold->wait.event = hold;
  ++fenced_;
  {
    const std::lock_guard lock(shared_->mutex);
    ++shared_->slots[address].uses;
  }
  device_->OrderAfter(StreamKind::kFence, hold->fence);
  device_->Enqueue(&hold->wait);
}

void Views::EndHold(Hold* hold) {
  if (!hold->wait.status.ok())
    on_error_(Annotate(hold->wait.status, "waiting until the caller's stream has used a unit"));
  bool freed = false;
  {
    const std::lock_guard lock(shared_->mutex);
    freed = --shared_->slots[hold->address].uses == 0;
  }
  hold->address = nullptr;
  hold->fence = Fence();
  --fenced_;
  free_holds_.push_back(hold);
  if (freed) on_free_();
}

bool Views::InUse(const std::byte* address) const {
  const std::lock_guard lock(shared_->mutex);
  const auto it = shared_->slots.find(address);
  return it != shared_->slots.end() && it->second.uses > 0;
}

bool Views::Viewed(const std::byte* address) const {
  const std::lock_guard lock(shared_->mutex);
  const auto it = shared_->slots.find(address);
  return it != shared_->slots.end() && it->second.views > 0;
}

void Views::OrderAfterUsers(const std::byte* address, StreamKind stream) const {
  if (fenced_ == 0) return;
  for (const std::unique_ptr<Hold>& hold : holds_) {
    if (hold->address == address) device_->OrderAfter(stream, hold->fence);
  }
}

}  // namespace sluice
