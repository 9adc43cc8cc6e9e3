/* Training over the ranks of MPI through Sluice's C ABI: mpirun -n 2 ./train_mpi --stage 3
 *
 * A network of two layers learns a fixed function of its inputs; each rank has a part of the batch.
 * --stage says what the ranks share (ZeRO 0 to 3): all stages end with the same bits, which the
 * last line shows. How Sluice reaches the other ranks: mpi_table.h. What else a program does:
 * embed_c.c.
 *
 * Every call is checked. Rank 0 prints one line; exits with 0 if the loss fell as it should. */

#include <inttypes.h>
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "mpi_table.h"
#include "sluice/sluice.h"

enum { kInputs = 48, kHidden = 300, kOutputs = 4, kBatch = 8, kSteps = 40, kTensors = 4 };

static const int64_t kElements[kTensors] = {kInputs * kHidden, kHidden, kHidden* kOutputs,
                                            kOutputs};
static const char* const kNames[kTensors] = {"hidden.weight", "hidden.bias", "output.weight",
                                             "output.bias"};
static int g_rank;

static void Check(sluice_status status, const char* what) {
  if (status == SLUICE_OK) return;
  fprintf(stderr, "train_mpi: rank %d: %s: error %d: %s\n", g_rank, what, (int)status,
          sluice_last_error());
  exit(1); /* without MPI_Finalize: mpirun ends the others */
}

static void Wait(sluice_runtime runtime, sluice_ticket ticket, const char* what) {
  sluice_status status = SLUICE_PENDING;
  while (status == SLUICE_PENDING) status = sluice_wait(runtime, ticket, 100);
  Check(status, what);
}

/* The part of DLPack 0.6 that is passed. */
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
  float values[kTensors][kInputs * kHidden]; /* gradients; and what is written and read */
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
  Check(sluice_grad(t->runtime, tensor, t->values[tensor], kElements[tensor], NULL, &ticket),
        "grad");
  Wait(t->runtime, ticket, "grad");
}

/* Returns the loss of this rank's part: the mean square of the error. */
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
  memset(t->values, 0, sizeof(t->values));
  View* view = Acquire(t, 1);
  const float* w = Values(t, view, 2);
  for (int n = 0; n < kBatch; ++n) {
    memset(back[n], 0, sizeof(back[n]));
    for (int o = 0; o < kOutputs; ++o) {
      const float d = 2 * t->error[n][o] / (kBatch * kOutputs);
      t->values[3][o] += d;
      for (int h = 0; h < kHidden; ++h) {
        t->values[2][o * kHidden + h] += d * t->hidden[n][h];
        back[n][h] += d * w[o * kHidden + h] * (1 - t->hidden[n][h] * t->hidden[n][h]);
      }
    }
  }
  Release(t, 1, view);
  HandOver(t, 2);
  HandOver(t, 3);
  for (int n = 0; n < kBatch; ++n) {
    for (int h = 0; h < kHidden; ++h) {
      t->values[1][h] += back[n][h];
      for (int i = 0; i < kInputs; ++i) t->values[0][h * kInputs + i] += back[n][h] * t->x[n][i];
    }
  }
  HandOver(t, 0);
  HandOver(t, 1);
}

static void Step(Trainer* t) {
  const sluice_group group = {sizeof(group), 1e-2, 0.9, 0.999, 1e-8, 0.01, 0, 1};
  const sluice_step_args args = {sizeof(args), &group, 1, 1.0, NULL, 0};
  sluice_ticket ticket;
  Check(sluice_step(t->runtime, &args, &ticket), "step");
  Wait(t->runtime, ticket, "step");
}

/* Each rank's are others. */
static void MakeData(Trainer* t) {
  uint64_t seed = 1000 + (uint64_t)g_rank;
  for (int n = 0; n < kBatch; ++n) {
    for (int i = 0; i < kInputs; ++i) t->x[n][i] = Random(&seed);
    for (int o = 0; o < kOutputs; ++o)
      t->target[n][o] = sinf(3 * t->x[n][o]) + 0.5f * t->x[n][o + kOutputs];
  }
}

/* All ranks write the same values. */
static void Load(Trainer* t) {
  uint64_t seed = 1;
  for (uint32_t k = 0; k < kTensors; ++k) {
    sluice_tensor_info info = {.struct_size = sizeof(info)};
    sluice_ticket ticket;
    const float scale = k == 0 ? 0.3f : k == 2 ? 0.1f : 0.0f;
    for (int64_t i = 0; i < kElements[k]; ++i) t->values[k][i] = scale * Random(&seed);
    Check(
        sluice_write(t->runtime, k, SLUICE_MASTER, t->values[k], SLUICE_F32, kElements[k], &ticket),
        "write");
    Wait(t->runtime, ticket, "write");
    Check(sluice_tensor_query(t->runtime, k, &info), "query");
    t->offset[k] = info.offset;
  }
}

/* Of all masters, bit by bit (FNV-1a). All ranks read together. */
static uint64_t Digest(Trainer* t) {
  uint64_t hash = 14695981039346656037u;
  for (uint32_t k = 0; k < kTensors; ++k) {
    sluice_ticket ticket;
    Check(
        sluice_read(t->runtime, k, SLUICE_MASTER, t->values[k], SLUICE_F32, kElements[k], &ticket),
        "read");
    Wait(t->runtime, ticket, "read");
    const unsigned char* bytes = (const unsigned char*)t->values[k];
    for (size_t i = 0; i < (size_t)kElements[k] * sizeof(float); ++i)
      hash = (hash ^ bytes[i]) * 1099511628211u;
  }
  return hash;
}

static sluice_model Describe(void) {
  sluice_model model;
  Check(sluice_model_create(&model), "model");
  for (uint32_t k = 0; k < kTensors; ++k) {
    uint32_t unit = k / 2, tensor;
    if (k % 2 == 0)
      Check(sluice_model_add_unit(model, k == 0 ? "hidden" : "output", &unit), "unit");
    Check(sluice_model_add_tensor(model, unit, kNames[k], kElements[k], 0, &tensor), "tensor");
  }
  return model;
}

int main(int argc, char** argv) {
  sluice_comm_table tables[kMpiTables];
  mpi_tables_open(&argc, &argv, tables);
  sluice_options options = SLUICE_OPTIONS_INIT;
  for (int i = 1; i < argc; ++i) {
    if (strcmp(argv[i], "--stage") == 0 && i + 1 < argc) {
      options.zero_stage = atoi(argv[++i]);
    } else {
      fprintf(stderr, "usage: mpirun -n RANKS train_mpi [--stage 0|1|2|3]\n");
      return 2;
    }
  }
  g_rank = (int)tables[0].rank;
  options.rank = tables[0].rank;
  options.ranks = tables[0].ranks;
  options.comm = tables;
  options.rank_timeout_ms =
      60 * 1000; /* a rank that keeps the others waiting for so long is lost */
  options.device = SLUICE_DEVICE_HOST; /* this program computes where the host can read */
  options.hbm_bytes = 256 << 10;
  options.pinned_bytes = 4 << 20;
  options.workers = 1;
  options.resident_elements_max = 0;

  static Trainer trainer;
  sluice_model model = Describe();
  Check(sluice_runtime_create(model, &options, &trainer.runtime), "runtime");
  Check(sluice_model_destroy(model), "destroy the model");
  Load(&trainer);
  MakeData(&trainer);

  double first = 0, loss = 0;
  for (int step = 0; step < kSteps; ++step) {
    Check(sluice_iteration_begin(trainer.runtime, 0, SLUICE_ITERATION_BOUNDARY), "begin");
    loss = Forward(&trainer);
    if (step == 0) first = loss;
    Backward(&trainer);
    Check(sluice_iteration_end(trainer.runtime), "end");
    Step(&trainer);
  }
  const uint64_t digest = Digest(&trainer);
  Check(sluice_runtime_destroy(trainer.runtime), "destroy the runtime");
  mpi_tables_close();
  if (g_rank == 0) {
    printf("train_mpi: %" PRIu32 " ranks, %d steps, loss %.4f -> %.4f, masters %016" PRIx64 "\n",
           options.ranks, kSteps, first, loss, digest);
  }
  return loss < first / 2 ? 0 : 1;
}
