/* Training through Sluice's C ABI, whole: a network of two layers learns a fixed function of its
 * inputs, with memory for only one layer's parameters at a time and its optimizer states on a
 * drive.
 *
 * embed_c swaps in a directory of its own under $TMPDIR (or /tmp), which it removes again;
 * `embed_c threads` does the same with threads for I/O instead of what is best here.
 *
 * Every call is checked. Prints one line, and exits with 0 if the loss fell as it should. */

#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "sluice/sluice.h"

enum { kInputs = 32, kHidden = 160, kOutputs = 4, kBatch = 16, kSteps = 30 };
enum { kUnits = 2, kTensors = 4 }; /* hidden: weight, bias; output: weight, bias */

static const int64_t kElements[kTensors] = {kInputs * kHidden, kHidden, kHidden* kOutputs,
                                            kOutputs};
static const char* const kNames[kTensors] = {"hidden.weight", "hidden.bias", "output.weight",
                                             "output.bias"};

static void Check(sluice_status status, const char* what) {
  if (status == SLUICE_OK) return;
  fprintf(stderr, "embed_c: %s: error %d: %s\n", what, (int)status, sluice_last_error());
  exit(1);
}

static void Expect(int truth, const char* what) {
  if (truth) return;
  fprintf(stderr, "embed_c: not so: %s\n", what);
  exit(1);
}

/* A ticket's own result. sluice_wait returns after 100 ms at most, so that a program could look at
 * other things in between. */
static void Wait(sluice_runtime runtime, sluice_ticket ticket, const char* what) {
  sluice_status status = SLUICE_PENDING;
  while (status == SLUICE_PENDING) status = sluice_wait(runtime, ticket, 100);
  Check(status, what);
}

/* The part of DLPack 0.6 that is passed. A framework has it from its own headers. */
typedef struct View {
  void* data;
  int32_t device[2], ndim;
  uint8_t code, bits;
  uint16_t lanes;
  int64_t *shape, *strides;
  uint64_t byte_offset;
  void* context;
  void (*deleter)(struct View* self);
} View;

/* Repeatable numbers in [-1, 1). */
static float Random(uint64_t* seed) {
  *seed = *seed * 6364136223846793005u + 1442695040888963407u;
  return (float)((int32_t)(*seed >> 32)) / 2147483648.0f;
}

typedef struct Trainer {
  sluice_runtime runtime;
  int64_t offset[kTensors]; /* in the unit's view */
  float x[kBatch][kInputs], target[kBatch][kOutputs];
  float hidden[kBatch][kHidden], error[kBatch][kOutputs];
  float grad[kTensors][kInputs * kHidden];
} Trainer;

static View* Acquire(Trainer* t, uint32_t unit) {
  sluice_ticket ticket;
  void* view = NULL;
  Check(sluice_acquire(t->runtime, unit, NULL, &ticket), "acquire");
  Wait(t->runtime, ticket, "acquire");
  Check(sluice_unit_view(t->runtime, unit, &view), "view");
  return view;
}

static void Release(Trainer* t, uint32_t unit, View* view) {
  view->deleter(view);
  Check(sluice_release(t->runtime, unit, NULL), "release");
}

static const float* Values(const Trainer* t, const View* view, int tensor) {
  return (const float*)((const char*)view->data + view->byte_offset) + t->offset[tensor];
}

static void HandOver(Trainer* t, uint32_t tensor) {
  sluice_ticket ticket;
  Check(sluice_grad(t->runtime, tensor, t->grad[tensor], kElements[tensor], NULL, &ticket), "grad");
  Wait(t->runtime, ticket, "grad");
}

/* Returns the loss: the mean square of the error. */
static double Forward(Trainer* t) {
  View* view = Acquire(t, 0);
  const float *w = Values(t, view, 0), *b = Values(t, view, 1);
  for (int n = 0; n < kBatch; ++n) {
    for (int h = 0; h < kHidden; ++h) {
      float sum = b[h];
      for (int i = 0; i < kInputs; ++i) sum += w[h * kInputs + i] * t->x[n][i];
      t->hidden[n][h] = tanhf(sum);
    }
  }
  Release(t, 0, view);

  double loss = 0;
  view = Acquire(t, 1);
  w = Values(t, view, 2), b = Values(t, view, 3);
  for (int n = 0; n < kBatch; ++n) {
    for (int o = 0; o < kOutputs; ++o) {
      float sum = b[o];
      for (int h = 0; h < kHidden; ++h) sum += w[o * kHidden + h] * t->hidden[n][h];
      t->error[n][o] = sum - t->target[n][o];
      loss += t->error[n][o] * t->error[n][o] / (kBatch * kOutputs);
    }
  }
  Release(t, 1, view);
  return loss;
}

static void Backward(Trainer* t) {
  static float back[kBatch][kHidden]; /* of the loss, by what enters tanh */
  memset(t->grad, 0, sizeof(t->grad));
  View* view = Acquire(t, 1);
  const float* w = Values(t, view, 2);
  for (int n = 0; n < kBatch; ++n) {
    memset(back[n], 0, sizeof(back[n]));
    for (int o = 0; o < kOutputs; ++o) {
      const float d = 2 * t->error[n][o] / (kBatch * kOutputs);
      t->grad[3][o] += d;
      for (int h = 0; h < kHidden; ++h) {
        t->grad[2][o * kHidden + h] += d * t->hidden[n][h];
        back[n][h] += d * w[o * kHidden + h] * (1 - t->hidden[n][h] * t->hidden[n][h]);
      }
    }
  }
  Release(t, 1, view);
  HandOver(t, 2);
  HandOver(t, 3);

  view = Acquire(t, 0); /* as a framework would, though this layer's inputs are at hand */
  for (int n = 0; n < kBatch; ++n) {
    for (int h = 0; h < kHidden; ++h) {
      t->grad[1][h] += back[n][h];
      for (int i = 0; i < kInputs; ++i) t->grad[0][h * kInputs + i] += back[n][h] * t->x[n][i];
    }
  }
  Release(t, 0, view);
  HandOver(t, 0);
  HandOver(t, 1);
}

static void Step(Trainer* t) {
  const sluice_group group = {sizeof(group), 1e-2, 0.9, 0.999, 1e-8, 0.01, 0, 1};
  const sluice_step_args args = {sizeof(args), &group, 1, 1.0};
  sluice_step_result result = {.struct_size = sizeof(result)};
  sluice_ticket ticket;
  Check(sluice_step(t->runtime, &args, &ticket), "step");
  Wait(t->runtime, ticket, "step"); /* the decision; updates go on under the next forward */
  Check(sluice_last_step(t->runtime, &result), "last step");
  Expect(result.applied && result.grad_norm > 0, "the step was applied");
}

static void MakeData(Trainer* t, uint64_t* seed) {
  for (int n = 0; n < kBatch; ++n) {
    for (int i = 0; i < kInputs; ++i) t->x[n][i] = Random(seed);
    for (int o = 0; o < kOutputs; ++o)
      t->target[n][o] = sinf(3 * t->x[n][o]) + 0.5f * t->x[n][o + kOutputs];
  }
}

/* Every tensor needs initial values before its unit can be used. */
static void Load(Trainer* t, uint64_t* seed) {
  for (uint32_t k = 0; k < kTensors; ++k) {
    sluice_tensor_info info = {.struct_size = sizeof(info)};
    sluice_ticket ticket;
    const float scale = k == 0 ? 0.3f : k == 2 ? 0.1f : 0.0f;
    for (int64_t i = 0; i < kElements[k]; ++i) t->grad[k][i] = scale * Random(seed);
    Check(sluice_write(t->runtime, k, SLUICE_MASTER, t->grad[k], SLUICE_F32, kElements[k], &ticket),
          "write");
    Wait(t->runtime, ticket, "write");
    Check(sluice_tensor_query(t->runtime, k, &info), "query");
    t->offset[k] = info.offset;
  }
}

static sluice_model Describe(void) {
  sluice_model model;
  Check(sluice_model_create(&model), "model");
  for (uint32_t u = 0; u < kUnits; ++u) {
    uint32_t unit;
    Check(sluice_model_add_unit(model, u == 0 ? "hidden" : "output", &unit), "unit");
    for (uint32_t k = 2 * u; k < 2 * u + 2; ++k) {
      uint32_t tensor;
      Check(sluice_model_add_tensor(model, unit, kNames[k], kElements[k], 0, &tensor), "tensor");
      Expect(tensor == k, "tensors are numbered in the order they are added");
    }
  }
  return model;
}

/* The number after `"key": ` in a report; good enough for keys that are there once. */
static double NumberIn(const char* json, const char* key) {
  char quoted[64];
  snprintf(quoted, sizeof(quoted), "\"%s\": ", key);
  const char* at = strstr(json, quoted);
  Expect(at != NULL, key);
  return atof(at + strlen(quoted));
}

static char* Report(sluice_runtime runtime) {
  size_t needed = 0;
  Check(sluice_report(runtime, NULL, 0, &needed), "report");
  const size_t capacity = needed + 4096; /* it may grow meanwhile */
  char* json = malloc(capacity);
  Expect(json != NULL, "memory for the report");
  Check(sluice_report(runtime, json, capacity, &needed), "report");
  Expect(needed <= capacity, "the report fits");
  return json;
}

int main(int argc, char** argv) {
  char directory[512];
  const char* temp = getenv("TMPDIR");
  snprintf(directory, sizeof(directory), "%s/sluice-embed-XXXXXX", temp != NULL ? temp : "/tmp");
  Expect(mkdtemp(directory) != NULL, "a directory can be made under TMPDIR");
  Expect(sluice_abi_version() == SLUICE_ABI_VERSION, "header and library belong together");

  const char* const paths[] = {directory};
  sluice_options options = SLUICE_OPTIONS_INIT;
  options.device = SLUICE_DEVICE_HOST; /* this program computes where the host can read */
  options.hbm_bytes = 24 << 10;        /* the larger layer, and nothing else */
  options.pinned_bytes = 180 << 10;    /* gradients, buffers, and next to nothing of the states */
  options.nvme_paths = paths;
  options.nvme_path_count = 1;
  options.workers = 2;
  if (argc > 1 && strcmp(argv[1], "threads") == 0) options.io_engine = SLUICE_IO_THREADS;
  options.chunk_elements = 4096;
  options.resident_elements_max = 0;

  static Trainer trainer;
  sluice_model model = Describe();
  Check(sluice_runtime_create(model, &options, &trainer.runtime), "runtime");
  Check(sluice_model_destroy(model), "destroy the model");
  uint64_t seed = 1;
  Load(&trainer, &seed);
  MakeData(&trainer, &seed);

  double first = 0, loss = 0;
  for (int step = 0; step < kSteps; ++step) {
    Check(sluice_iteration_begin(trainer.runtime, 0, SLUICE_ITERATION_BOUNDARY), "begin");
    loss = Forward(&trainer);
    if (step == 0) first = loss;
    Backward(&trainer);
    Check(sluice_iteration_end(trainer.runtime), "end");
    Step(&trainer);
  }
  sluice_ticket ticket;
  Check(sluice_drain(trainer.runtime, &ticket), "drain");
  Wait(trainer.runtime, ticket, "drain");

  char* report = Report(trainer.runtime);
  const double moved = NumberIn(report, "nvme_read_bytes");
  free(report);
  Check(sluice_runtime_destroy(trainer.runtime), "destroy the runtime");
  Expect(sluice_iteration_end(trainer.runtime) == SLUICE_INVALID_ARGUMENT,
         "a handle that was destroyed is an error, not a crash");
  Expect(rmdir(directory) == 0, "nothing was left in the swap directory");
  Expect(moved > 0, "states came from the drive in every step");
  Expect(loss < first / 3, "the loss fell");
  printf("embed_c: %d steps, loss %.4f -> %.4f, %.0f KiB read from the drive in each\n", kSteps,
         first, loss, moved / 1024);
  return 0;
}
