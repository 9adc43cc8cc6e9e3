// Whether comm/nccl_api.h says what a real nccl.h says. Compiled by scripts/check-nccl only, and
// never linked: all of it is static_assert.

#include <nccl.h>

#include <cstddef>
#include <type_traits>

#include "comm/nccl_api.h"

namespace sluice {
namespace {

// NCCL's types as ours.
template <typename T>
struct Ours {
  using Type = T;
};
template <>
struct Ours<ncclResult_t> {
  using Type = NcclResult;
};
template <>
struct Ours<ncclComm_t> {
  using Type = NcclComm*;
};
template <>
struct Ours<ncclComm_t*> {
  using Type = NcclComm**;
};
template <>
struct Ours<ncclUniqueId> {
  using Type = NcclUniqueId;
};
template <>
struct Ours<ncclUniqueId*> {
  using Type = NcclUniqueId*;
};
template <>
struct Ours<ncclConfig_t*> {
  using Type = NcclConfig*;
};
template <>
struct Ours<ncclResult_t*> {
  using Type = NcclResult*;
};
template <>
struct Ours<ncclDataType_t> {
  using Type = NcclType;
};
template <>
struct Ours<ncclRedOp_t> {
  using Type = NcclRedOp;
};
template <>
struct Ours<cudaStream_t> {
  using Type = void*;
};

template <typename F>
struct OursOf;
template <typename Result, typename... Arguments>
struct OursOf<Result(Arguments...)> {
  using Type = typename Ours<Result>::Type (*)(typename Ours<Arguments>::Type...);
};

#define SLUICE_NCCL_SAME(name, result, arguments)                                            \
  static_assert(std::is_same_v<OursOf<decltype(nccl##name)>::Type, decltype(NcclApi::name)>, \
                "nccl" #name " is declared otherwise");
SLUICE_NCCL_FUNCTIONS(SLUICE_NCCL_SAME)
#undef SLUICE_NCCL_SAME

// Passed by value, or by pointer: as large, and as C passes them.
static_assert(sizeof(NcclUniqueId) == sizeof(ncclUniqueId));
static_assert(alignof(NcclUniqueId) == alignof(ncclUniqueId));
static_assert(std::is_trivially_copyable_v<NcclUniqueId>);
static_assert(
    std::is_same_v<std::underlying_type_t<NcclResult>, std::underlying_type_t<ncclResult_t>>);
static_assert(
    std::is_same_v<std::underlying_type_t<NcclType>, std::underlying_type_t<ncclDataType_t>>);
static_assert(
    std::is_same_v<std::underlying_type_t<NcclRedOp>, std::underlying_type_t<ncclRedOp_t>>);

#define SLUICE_NCCL_VALUE(ours, theirs) \
  static_assert(static_cast<int>(ours) == static_cast<int>(theirs), #theirs " is another number")
SLUICE_NCCL_VALUE(kNcclSuccess, ncclSuccess);
SLUICE_NCCL_VALUE(kNcclUnhandledCudaError, ncclUnhandledCudaError);
SLUICE_NCCL_VALUE(kNcclSystemError, ncclSystemError);
SLUICE_NCCL_VALUE(kNcclInternalError, ncclInternalError);
SLUICE_NCCL_VALUE(kNcclInvalidArgument, ncclInvalidArgument);
SLUICE_NCCL_VALUE(kNcclInvalidUsage, ncclInvalidUsage);
SLUICE_NCCL_VALUE(kNcclRemoteError, ncclRemoteError);
SLUICE_NCCL_VALUE(kNcclInProgress, ncclInProgress);
SLUICE_NCCL_VALUE(kNcclUint8, ncclUint8);
SLUICE_NCCL_VALUE(kNcclFloat16, ncclFloat16);
SLUICE_NCCL_VALUE(kNcclFloat32, ncclFloat32);
SLUICE_NCCL_VALUE(kNcclBfloat16, ncclBfloat16);
SLUICE_NCCL_VALUE(kNcclSum, ncclSum);

// The configuration is the beginning of theirs, and says what theirs says of what is not set.
#define SLUICE_NCCL_FIELD(ours, theirs)                                                         \
  static_assert(offsetof(NcclConfig, ours) == offsetof(ncclConfig_t, theirs) &&                 \
                    std::is_same_v<decltype(NcclConfig::ours), decltype(ncclConfig_t::theirs)>, \
                #theirs " lies elsewhere")
SLUICE_NCCL_FIELD(size, size);
SLUICE_NCCL_FIELD(magic, magic);
SLUICE_NCCL_FIELD(version, version);
SLUICE_NCCL_FIELD(blocking, blocking);
SLUICE_NCCL_FIELD(cga_cluster_size, cgaClusterSize);
SLUICE_NCCL_FIELD(min_ctas, minCTAs);
SLUICE_NCCL_FIELD(max_ctas, maxCTAs);
SLUICE_NCCL_FIELD(net_name, netName);
static_assert(sizeof(NcclConfig) <= sizeof(ncclConfig_t));
constexpr ncclConfig_t kTheirs = NCCL_CONFIG_INITIALIZER;
constexpr NcclConfig kOurs;
static_assert(kOurs.magic == kTheirs.magic);
static_assert(kOurs.version == NCCL_VERSION(2, 17, 0) && kOurs.version <= kTheirs.version);
static_assert(kOurs.blocking == kTheirs.blocking && kOurs.min_ctas == kTheirs.minCTAs);
static_assert(kOurs.net_name == kTheirs.netName);

}  // namespace
}  // namespace sluice
