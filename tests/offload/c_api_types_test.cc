// Types of units over the C ABI: each unit's copies, views and gradients are of its own types,
// bytes survive, and every combination that makes no sense is refused by name.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "nlohmann/json.hpp"
#include "tests/offload/c_api_fixture.h"

namespace sluice {
namespace {

using ::testing::HasSubstr;
using Json = nlohmann::json;

constexpr int32_t kDtypes[] = {SLUICE_F32, SLUICE_BF16, SLUICE_F16};
constexpr int64_t kSizes[] = {4, 2, 2, 1};  // by sluice_dtype

// A model of one unit and one tensor.
class OneTensor {
 public:
  explicit OneTensor(int64_t elements, int32_t keep = SLUICE_KEEP_ALL) : elements_(elements) {
    uint32_t number = 0;
    EXPECT_EQ(SLUICE_OK, sluice_model_create(&model_));
    EXPECT_EQ(SLUICE_OK, sluice_model_add_unit(model_, "layer", &number));
    EXPECT_EQ(SLUICE_OK, sluice_model_add_tensor(model_, 0, "weight", elements, 0, &number));
    EXPECT_EQ(SLUICE_OK, sluice_model_set_keep(model_, 0, keep));
  }
  ~OneTensor() {
    if (runtime_ != 0) sluice_runtime_destroy(runtime_);
    sluice_model_destroy(model_);
  }
  OneTensor(const OneTensor&) = delete;
  OneTensor& operator=(const OneTensor&) = delete;

  sluice_status SetTypes(int32_t param, int32_t grad) {
    return sluice_model_set_unit_types(model_, 0, param, grad);
  }
  sluice_status Create() {
    const sluice_options options = DefaultOptions();
    return sluice_runtime_create(model_, &options, &runtime_);
  }
  sluice_status Read(int32_t field, int32_t dtype, void* data) {
    return Wait(sluice_read(runtime_, 0, field, data, dtype, elements_, &ticket_));
  }
  sluice_status Write(int32_t field, int32_t dtype, const void* data) {
    return Wait(sluice_write(runtime_, 0, field, data, dtype, elements_, &ticket_));
  }
  sluice_status Push(const void* data) {
    return Wait(sluice_grad(runtime_, 0, data, elements_, nullptr, &ticket_));
  }
  sluice_status Acquire() { return Wait(sluice_acquire(runtime_, 0, nullptr, &ticket_)); }
  sluice_status Step(const sluice_place& place) {
    const sluice_group group = DefaultGroup();
    const sluice_step_args args = {sizeof(args), &group, 1, 0, &place, 1};
    return Wait(sluice_step(runtime_, &args, &ticket_));
  }
  sluice_status Drain() { return Wait(sluice_drain(runtime_, &ticket_)); }

  sluice_model model() const { return model_; }
  sluice_runtime runtime() const { return runtime_; }

 private:
  sluice_status Wait(sluice_status started) const {
    sluice_status status = started == SLUICE_OK ? SLUICE_PENDING : started;
    while (status == SLUICE_PENDING) status = sluice_wait(runtime_, ticket_, 100);
    return status;
  }

  const int64_t elements_;
  sluice_model model_ = 0;
  sluice_runtime runtime_ = 0;
  sluice_ticket ticket_ = 0;
};

std::string Error() { return sluice_last_error(); }

TEST(CApiTypesTest, WhatAUnitCantBeIsRefusedByName) {
  OneTensor one(10);
  for (const int32_t wrong : {-1, 4, 1 << 20}) {
    EXPECT_EQ(SLUICE_INVALID_ARGUMENT, one.SetTypes(wrong, SLUICE_F32));
    EXPECT_THAT(Error(), HasSubstr("param_dtype of unit 'layer' is " + std::to_string(wrong)));
  }
  for (const int32_t wrong : {-1, 3, 4}) {
    EXPECT_EQ(SLUICE_INVALID_ARGUMENT, one.SetTypes(SLUICE_BF16, wrong));
    EXPECT_THAT(Error(), HasSubstr("grad_dtype of unit 'layer' is " + std::to_string(wrong)));
  }
  EXPECT_EQ(SLUICE_INVALID_ARGUMENT,
            sluice_model_set_unit_types(one.model(), 1, SLUICE_F32, SLUICE_F32));
  EXPECT_THAT(Error(), HasSubstr("unit 1 does not exist"));
  EXPECT_EQ(SLUICE_INVALID_ARGUMENT, sluice_model_set_unit_types(0, 0, SLUICE_F32, SLUICE_F32));
  EXPECT_EQ(SLUICE_OK, one.Create()) << "what was refused has changed nothing";
  for (int32_t sluice_options::*dtype :
       {&sluice_options::param_dtype, &sluice_options::grad_dtype}) {
    sluice_options options = DefaultOptions();
    options.*dtype = SLUICE_BYTES;
    sluice_runtime none = 0;
    EXPECT_EQ(SLUICE_INVALID_ARGUMENT, sluice_runtime_create(one.model(), &options, &none));
    EXPECT_THAT(Error(), HasSubstr("dtype is 3"));
  }
}

TEST(CApiTypesTest, OnlyFrozenTensorsAreOfBytes) {
  for (const int32_t keep :
       {SLUICE_KEEP_ALL, SLUICE_KEEP_STATES, SLUICE_KEEP_MOMENTS, SLUICE_KEEP_PARAM}) {
    for (const int32_t grad : {-7, 0, 3, 99}) {  // ignored
      OneTensor one(10, keep);
      EXPECT_EQ(SLUICE_OK, one.SetTypes(SLUICE_BYTES, grad));
      const sluice_options options = DefaultOptions();
      const sluice_status planned = sluice_plan(one.model(), &options, nullptr, 0, nullptr);
      const sluice_status created = one.Create();
      EXPECT_EQ(created, planned);
      EXPECT_EQ(keep == SLUICE_KEEP_PARAM ? SLUICE_OK : SLUICE_INVALID_ARGUMENT, created);
      if (created != SLUICE_OK) {
        EXPECT_THAT(Error(), HasSubstr("unit 'layer' is of bytes, but tensor 'weight'"));
      }
    }
  }
}

TEST(CApiTypesTest, AParameterThatIsTheMasterIsUpdatedWhereItLies) {
  constexpr size_t kCount = 5000;
  OneTensor one(kCount, SLUICE_KEEP_MOMENTS);
  for (const int32_t wrong : {-1, 4, 1 << 20}) {
    EXPECT_EQ(SLUICE_INVALID_ARGUMENT, sluice_model_set_keep(one.model(), 0, wrong));
    EXPECT_THAT(Error(), HasSubstr("keep is " + std::to_string(wrong)));
  }
  ASSERT_EQ(SLUICE_OK, one.Create()) << Error();
  std::vector<float> values(kCount, 0.0f), param(kCount, 1.0f), gradient(kCount, 2.0f);
  EXPECT_EQ(SLUICE_FAILED_PRECONDITION, one.Acquire());
  EXPECT_THAT(Error(), HasSubstr("no values yet (sluice_write its moments)"));
  EXPECT_EQ(SLUICE_OK, one.Write(SLUICE_EXP_AVG, SLUICE_F32, values.data()));
  EXPECT_EQ(SLUICE_OK, one.Acquire());
  EXPECT_EQ(SLUICE_OK, sluice_release(one.runtime(), 0, nullptr));
  for (const int32_t field : {SLUICE_PARAM, SLUICE_MASTER}) {
    EXPECT_EQ(SLUICE_NOT_FOUND, one.Read(field, SLUICE_F32, values.data()));
    EXPECT_THAT(Error(), HasSubstr("of tensor 'weight' only moments are kept"));
  }
  EXPECT_EQ(SLUICE_NOT_FOUND, one.Write(SLUICE_MASTER, SLUICE_F32, values.data()));
  ASSERT_EQ(SLUICE_OK, one.Push(gradient.data()));
  for (const int32_t dtype : {SLUICE_BF16, SLUICE_F16}) {
    EXPECT_EQ(SLUICE_INVALID_ARGUMENT, one.Step({param.data(), dtype, 0}));
    EXPECT_THAT(Error(), HasSubstr("must be fp32"));
  }
  std::vector<char> bytes(4 * kCount + 8);
  for (const int64_t off : {1, 2, 3}) {
    EXPECT_EQ(SLUICE_INVALID_ARGUMENT, one.Step({bytes.data() + off, SLUICE_F32, 0}));
    EXPECT_THAT(Error(), HasSubstr("'weight' is not aligned to its type"));
  }
  EXPECT_EQ(param, std::vector<float>(kCount, 1.0f));
  ASSERT_EQ(SLUICE_OK, one.Step({param.data(), SLUICE_F32, 0})) << Error();
  ASSERT_EQ(SLUICE_OK, one.Drain());
  // The first step of Adam is lr times the gradient's sign.
  for (const float value : param) ASSERT_NEAR(value, 1.0f - 0.1f, 1e-6);
  ASSERT_EQ(SLUICE_OK, one.Read(SLUICE_EXP_AVG, SLUICE_F32, values.data()));
  for (const float value : values) ASSERT_NEAR(value, 0.1f * 2.0f, 1e-6);
}

// Every field, type and direction, of a unit of bytes and of one that is not.
TEST(CApiTypesTest, BytesAreReadAndWrittenAsBytesOnly) {
  for (const bool bytes : {true, false}) {
    OneTensor one(10, SLUICE_KEEP_PARAM);
    ASSERT_EQ(SLUICE_OK, one.SetTypes(bytes ? SLUICE_BYTES : SLUICE_BF16, SLUICE_BF16));
    ASSERT_EQ(SLUICE_OK, one.Create()) << Error();
    float data[10] = {};
    ASSERT_EQ(SLUICE_OK, one.Write(SLUICE_MASTER, bytes ? SLUICE_BYTES : SLUICE_F32, data));
    for (int32_t field = SLUICE_PARAM; field <= SLUICE_GRAD; ++field) {
      for (int32_t dtype = SLUICE_F32; dtype <= SLUICE_BYTES; ++dtype) {
        SCOPED_TRACE(::testing::Message() << bytes << " field " << field << " dtype " << dtype);
        const bool param = field == SLUICE_PARAM || field == SLUICE_MASTER;
        const bool matches = bytes == (dtype == SLUICE_BYTES);
        const sluice_status read = one.Read(field, dtype, data);
        const sluice_status expected_read = param && matches    ? SLUICE_OK
                                            : bytes || !matches ? SLUICE_INVALID_ARGUMENT
                                                                : SLUICE_NOT_FOUND;
        EXPECT_EQ(expected_read, read) << Error();
        if (read == SLUICE_INVALID_ARGUMENT) {
          EXPECT_THAT(Error(), HasSubstr("unit 'layer'"));
        }
        const sluice_status written = one.Write(field, dtype, data);
        const sluice_status expected_written = !matches                 ? SLUICE_INVALID_ARGUMENT
                                               : bytes                  ? expected_read
                                               : field == SLUICE_PARAM  ? SLUICE_INVALID_ARGUMENT
                                               : field == SLUICE_MASTER ? SLUICE_OK
                                               : field == SLUICE_GRAD   ? SLUICE_FAILED_PRECONDITION
                                                                        : SLUICE_NOT_FOUND;
        EXPECT_EQ(expected_written, written) << Error();
      }
    }
    EXPECT_EQ(SLUICE_FAILED_PRECONDITION, one.Push(data));
    EXPECT_THAT(Error(), HasSubstr("tensor 'weight' is frozen"));
    EXPECT_EQ(SLUICE_FAILED_PRECONDITION, sluice_grad_clear(one.runtime(), 0));
    EXPECT_THAT(Error(), HasSubstr("tensor 'weight' is frozen"));
  }
}

// All patterns of 16 bits; of fp32 as upper halves, so every sign, exponent and kind of NaN, above
// lower halves that make subnormals and payloads.
std::vector<uint8_t> EveryPattern(int32_t dtype) {
  std::vector<uint8_t> bytes;
  for (uint32_t i = 0; i < 65536; ++i) {
    constexpr uint8_t kLower[] = {0, 1, 255};
    if (dtype == SLUICE_F32) bytes.insert(bytes.end(), 2, kLower[i % 3]);
    bytes.push_back(static_cast<uint8_t>(i));
    bytes.push_back(static_cast<uint8_t>(i >> 8));
  }
  return bytes;
}

TEST(CApiTypesTest, EveryBitOfAFrozenTensorSurvivesInItsOwnType) {
  for (int32_t dtype = SLUICE_F32; dtype <= SLUICE_BYTES; ++dtype) {
    SCOPED_TRACE(dtype);
    const std::vector<uint8_t> bytes = EveryPattern(dtype);
    OneTensor one(static_cast<int64_t>(bytes.size()) / kSizes[dtype], SLUICE_KEEP_PARAM);
    ASSERT_EQ(SLUICE_OK, one.SetTypes(dtype, SLUICE_F32));
    ASSERT_EQ(SLUICE_OK, one.Create()) << Error();
    ASSERT_EQ(SLUICE_OK, one.Write(SLUICE_MASTER, dtype, bytes.data())) << Error();
    for (const int32_t field : {SLUICE_PARAM, SLUICE_MASTER}) {
      std::vector<uint8_t> got(bytes.size());
      ASSERT_EQ(SLUICE_OK, one.Read(field, dtype, got.data())) << Error();
      EXPECT_TRUE(got == bytes);
    }
  }
}

// What a view begins with, as DLPack has it.
struct Tensor {
  uint8_t* data;
  int32_t device_type, device_id, ndim;
  uint8_t code, bits;
  uint16_t lanes;
  int64_t* shape;
  int64_t* strides;
  uint64_t byte_offset;
  void* context;
  void (*deleter)(Tensor*);
};

TEST(CApiTypesTest, AViewIsOfItsUnitsType) {
  constexpr uint8_t kCodes[] = {2, 4, 2, 1};  // DLPack's of float, bfloat, float, unsigned
  for (int32_t dtype = SLUICE_F32; dtype <= SLUICE_BYTES; ++dtype) {
    SCOPED_TRACE(dtype);
    OneTensor one(5000, SLUICE_KEEP_PARAM);
    ASSERT_EQ(SLUICE_OK, one.SetTypes(dtype, SLUICE_F32));
    ASSERT_EQ(SLUICE_OK, one.Create()) << Error();
    std::vector<uint8_t> bytes(static_cast<size_t>(5000 * kSizes[dtype]), 0x3B);
    ASSERT_EQ(SLUICE_OK, one.Write(SLUICE_MASTER, dtype, bytes.data())) << Error();
    ASSERT_EQ(SLUICE_OK, one.Acquire()) << Error();
    void* view = nullptr;
    ASSERT_EQ(SLUICE_OK, sluice_unit_view(one.runtime(), 0, &view)) << Error();
    auto* tensor = static_cast<Tensor*>(view);
    EXPECT_EQ(kCodes[dtype], tensor->code);
    EXPECT_EQ(8 * kSizes[dtype], tensor->bits);
    EXPECT_EQ(5056, tensor->shape[0]);
    EXPECT_TRUE(std::equal(bytes.begin(), bytes.end(), tensor->data));
    tensor->deleter(tensor);
    EXPECT_EQ(SLUICE_OK, sluice_release(one.runtime(), 0, nullptr));
  }
}

// The gradient is taken in the unit's type: one that was pushed reads back as its bits.
TEST(CApiTypesTest, AGradientIsOfItsUnitsType) {
  for (const int32_t param : kDtypes) {
    for (const int32_t grad : kDtypes) {
      OneTensor one(300);
      ASSERT_EQ(SLUICE_OK, one.SetTypes(param, grad));
      ASSERT_EQ(SLUICE_OK, one.Create()) << Error();
      const std::vector<float> zeros(300);
      ASSERT_EQ(SLUICE_OK, one.Write(SLUICE_MASTER, SLUICE_F32, zeros.data())) << Error();
      const std::vector<uint8_t> pushed(static_cast<size_t>(300 * kSizes[grad]), 0x31);
      ASSERT_EQ(SLUICE_OK, one.Push(pushed.data())) << Error();
      std::vector<uint8_t> got(pushed.size());
      ASSERT_EQ(SLUICE_OK, one.Read(SLUICE_GRAD, grad, got.data())) << Error();
      EXPECT_TRUE(got == pushed) << param << " " << grad;
    }
  }
}

TEST(CApiTypesTest, ThePlanSaysTheTypes) {
  OneTensor one(300, SLUICE_KEEP_PARAM);
  uint32_t number = 0;
  for (const char* name : {"norm", "other", "adapter"}) {
    ASSERT_EQ(SLUICE_OK, sluice_model_add_unit(one.model(), name, &number));
    ASSERT_EQ(SLUICE_OK, sluice_model_add_tensor(one.model(), number, name, 64, 0, &number));
  }
  ASSERT_EQ(SLUICE_OK, one.SetTypes(SLUICE_BYTES, 0));
  for (const uint32_t unit : {1u, 3u})
    ASSERT_EQ(SLUICE_OK, sluice_model_set_unit_types(one.model(), unit, SLUICE_F32, SLUICE_F16));
  sluice_options options = DefaultOptions();
  options.param_dtype = options.grad_dtype = SLUICE_BF16;
  std::vector<char> text(1 << 16);
  ASSERT_EQ(SLUICE_OK, sluice_plan(one.model(), &options, text.data(), text.size(), nullptr));
  const Json plan = Json::parse(text.data());
  EXPECT_EQ("bf16", plan["param_dtype"]);
  EXPECT_EQ("bf16", plan["grad_dtype"]);
  const Json expected = {
      {{"param_dtype", "bytes"}, {"grad_dtype", "fp32"}, {"units", 1}, {"param_bytes", 320}},
      {{"param_dtype", "fp32"}, {"grad_dtype", "fp16"}, {"units", 2}, {"param_bytes", 512}},
      {{"param_dtype", "bf16"}, {"grad_dtype", "bf16"}, {"units", 1}, {"param_bytes", 128}}};
  EXPECT_EQ(expected, plan["types"]);
  EXPECT_EQ(320 + 512 + 128, plan["params_home_bytes"]["hbm"]);
  EXPECT_EQ(2 * 128 + 128, plan["step_traffic"]["gradient_bytes"]);
}

}  // namespace
}  // namespace sluice
