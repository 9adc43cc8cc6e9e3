#include "tests/comm/fake_nccl/fake_side_stream.h"

#include <dlfcn.h>

#include <vector>

#include "core/status.h"

namespace sluice {

namespace {

class FakeSideStream final : public SideStream {
 public:
  FakeSideStream(Bytes staging, int fails_at)
      : fake_(OpenFakeNccl()),
        handle_(fake_.StreamMake()),
        staging_(staging.size()),
        fails_at_(fails_at) {}
  ~FakeSideStream() override { fake_.StreamFree(handle_); }

  absl::Status Bind() override { return Call(); }
  void* handle() const override { return handle_; }
  MemoryView staging() const override { return staging_; }
  absl::Status Copy(ConstMemoryView from, std::byte* to) override {
    SLUICE_RETURN_IF_ERROR(Call());
    fake_.StreamCopy(handle_, to, from.data(), from.size());
    return absl::OkStatus();
  }
  absl::StatusOr<uint64_t> Mark() override {
    SLUICE_RETURN_IF_ERROR(Call());
    return fake_.StreamMark(handle_);
  }
  absl::StatusOr<bool> Passed(uint64_t mark) override {
    SLUICE_RETURN_IF_ERROR(Call());
    return fake_.StreamPassed(handle_, mark) != 0;
  }
  std::string description() const override { return "a fake stream"; }

 private:
  absl::Status Call() {
    if (fails_at_ < 0 || calls_++ < fails_at_) return absl::OkStatus();
    return absl::InternalError("the device has failed");
  }

  const FakeNccl& fake_;
  void* const handle_;
  mutable std::vector<std::byte> staging_;
  const int fails_at_;
  int calls_ = 0;
};

}  // namespace

std::string FakeNcclPath() { return SLUICE_FAKE_NCCL; }

const FakeNccl& OpenFakeNccl() {
  static const FakeNccl* const fake = [] {
    void* const handle = dlopen(SLUICE_FAKE_NCCL, RTLD_NOW | RTLD_LOCAL);
    SLUICE_CHECK_MSG(handle != nullptr, dlerror());
    auto* const found = new FakeNccl;
#define SLUICE_FAKE_FIND(name, result, arguments)                                         \
  found->name = reinterpret_cast<result(*) arguments>(dlsym(handle, "sluiceFake" #name)); \
  SLUICE_CHECK(found->name != nullptr);
    SLUICE_FAKE_FUNCTIONS(SLUICE_FAKE_FIND)
#undef SLUICE_FAKE_FIND
    return found;
  }();
  return *fake;
}

std::unique_ptr<SideStream> MakeFakeSideStream(Bytes staging, int fails_at) {
  return std::make_unique<FakeSideStream>(staging, fails_at);
}

}  // namespace sluice
