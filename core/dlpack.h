// core/dlpack.h
//
// DLPack 0.6, the part that is passed between frameworks (https://dmlc.github.io/dlpack): a stable
// C layout for a tensor and for who frees it. Views of HBM leave as such tensors, and a framework
// may hand over the memory of the HBM tier as one.

#ifndef SLUICE_CORE_DLPACK_H_
#define SLUICE_CORE_DLPACK_H_

#include <cstdint>

namespace sluice {

inline constexpr int32_t kDlCpu = 1;
inline constexpr int32_t kDlCuda = 2;

struct DlDevice {
  int32_t device_type;  // kDlCpu or kDlCuda
  int32_t device_id;
};
struct DlDataType {
  uint8_t code;  // 2: float, 4: bfloat
  uint8_t bits;
  uint16_t lanes;
};
struct DlTensor {
  void* data;
  DlDevice device;
  int32_t ndim;
  DlDataType dtype;
  int64_t* shape;
  int64_t* strides;
  uint64_t byte_offset;
};
struct DlManagedTensor {
  DlTensor dl_tensor;
  void* manager_ctx;
  void (*deleter)(DlManagedTensor* self);
};

}  // namespace sluice

#endif  // SLUICE_CORE_DLPACK_H_
