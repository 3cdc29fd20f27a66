// How a call of a planned network is cut over the threads, and what memory that takes. Every worker
// takes whole images while there are enough; the images that are left, or a small batch, are shared
// step by step: by rows, pixels or channels, as each kernel counts its units. Linear layers run
// once per batch.
#pragma once

#include <type_traits>
#include <variant>

#include "csrc/cpu/network_plan.h"
#include "kernels/cpu/kernel_table.h"

namespace fastdw {

struct NetworkSchedule {
  int64_t batch, workers;
  int64_t whole_images;    // of each worker, one after the other through all image steps
  int64_t rest_images;     // together, each image step split over the workers
  int64_t arena_floats;    // of all arenas
  int64_t batch_floats;    // values of the whole batch
  int64_t scratch_floats;  // of each worker

  bool empty() const { return batch == 0; }
};

// channels_last: the layout of x where stems read it.
NetworkSchedule schedule_of(const NetworkPlan& plan, const KernelTable& table, int64_t batch,
                            bool channels_last, int64_t threads);

// The units of a step that one of `parts` workers takes.
struct UnitRange {
  int64_t begin, end;
};
inline UnitRange units_of_part(int64_t units, int64_t part, int64_t parts) {
  return {units * part / parts, units * (part + 1) / parts};
}

inline const Kernel<StemParams>& kernel_for(const KernelTable& table, const StemParams&) {
  return table.stem_conv;
}
inline const Kernel<DepthwiseParams>& kernel_for(const KernelTable& table, const DepthwiseParams&) {
  return table.depthwise_conv;
}
inline const Kernel<PointwiseParams>& kernel_for(const KernelTable& table, const PointwiseParams&) {
  return table.pointwise_conv;
}
inline const Kernel<DenseConvParams>& kernel_for(const KernelTable& table, const DenseConvParams&) {
  return table.dense_conv;
}
inline const Kernel<ResizeParams>& kernel_for(const KernelTable& table, const ResizeParams&) {
  return table.resize;
}
inline const Kernel<CopyChannelsParams>& kernel_for(const KernelTable& table,
                                                    const CopyChannelsParams&) {
  return table.copy_channels;
}
inline const Kernel<MaxPoolParams>& kernel_for(const KernelTable& table, const MaxPoolParams&) {
  return table.max_pool;
}
inline const Kernel<InvertedResidualParams>& kernel_for(const KernelTable& table,
                                                        const InvertedResidualParams&) {
  return table.inverted_residual;
}
inline const Kernel<StemBlockParams>& kernel_for(const KernelTable& table, const StemBlockParams&) {
  return table.stem_block;
}
inline const Kernel<GlobalPoolParams>& kernel_for(const KernelTable& table,
                                                  const GlobalPoolParams&) {
  return table.global_pool;
}
inline const Kernel<LinearParams>& kernel_for(const KernelTable& table, const LinearParams&) {
  return table.linear;
}

inline void set_batch(StemBlockParams& params, int64_t images) {
  params.stem.batch = params.block.batch = images;
}
template <class Params>
void set_batch(Params& params, int64_t images) {
  params.batch = images;
}

inline StemParams* stem_of(StemParams& params) { return &params; }
inline StemParams* stem_of(StemBlockParams& params) { return &params.stem; }
template <class Params>
StemParams* stem_of(Params&) {
  return nullptr;
}

// Calls use(kernel, params) with the parameters of a step for so many images, all pointers null.
template <class Use>
void with_kernel(const KernelTable& table, const PlanStep& step, int64_t images, bool channels_last,
                 const Use& use) {
  std::visit(
      [&](auto params) {
        set_batch(params, images);
        if (StemParams* stem = stem_of(params))
          stem->channels_last = step.input != kNetworkInput || channels_last;
        use(kernel_for(table, params), params);
      },
      step.params);
}

}  // namespace fastdw
