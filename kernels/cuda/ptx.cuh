// The only place where kernels touch the hardware: memory, tensor cores and the few instructions
// that C++ has no word for. Every access to global or shared memory goes through here, so that
// tests/cuda_on_host can put a header of the same name and functions in its place, which runs the
// kernels thread by thread on the CPU and counts what they move.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

namespace fastdw::cuda {

template <int kBytes>
struct WordOf;
template <>
struct WordOf<2> {
  using type = unsigned short;
};
template <>
struct WordOf<4> {
  using type = unsigned int;
};
template <>
struct WordOf<8> {
  using type = uint2;
};
template <>
struct WordOf<16> {
  using type = uint4;
};

// V is 2, 4, 8 or 16 bytes and aligned to its size: one instruction.
template <class V>
using Word = typename WordOf<sizeof(V)>::type;

// By value: of a word that lies in memory, the compiler would copy single bytes.
template <class V>
__device__ __forceinline__ V from_word(Word<V> word) {
  V value;
  __builtin_memcpy(&value, &word, sizeof(V));
  return value;
}

template <class V>
__device__ __forceinline__ Word<V> to_word(const V& value) {
  Word<V> word;
  __builtin_memcpy(&word, &value, sizeof(V));
  return word;
}

// Global memory. Inputs and weights, which no kernel writes, go by the read-only path. Where not
// every lane takes part, the _or_zero and _if forms keep a warp's lanes at the same instruction.
template <class V>
__device__ __forceinline__ V load_global(const V* from) {
  return from_word<V>(__ldg(reinterpret_cast<const Word<V>*>(from)));
}

template <class V>
__device__ __forceinline__ V load_global_or_zero(const V* from, bool inside) {
  Word<V> word{};  // chosen between as a word: as elements of 2 bytes it would take twice the registers
  if (inside) word = __ldg(reinterpret_cast<const Word<V>*>(from));
  return from_word<V>(word);
}

// What another thread block has written in this launch: not by the read-only path.
template <class V>
__device__ __forceinline__ V load_global_coherent(const V* from) {
  return from_word<V>(__ldcg(reinterpret_cast<const Word<V>*>(from)));
}

// An assignment of a word of 16 bytes may become four stores.
__device__ __forceinline__ void store_global_word(void* to, unsigned short word) {
  asm volatile("st.global.b16 [%0], %1;" ::"l"(to), "h"(word) : "memory");
}
__device__ __forceinline__ void store_global_word(void* to, unsigned int word) {
  asm volatile("st.global.b32 [%0], %1;" ::"l"(to), "r"(word) : "memory");
}
__device__ __forceinline__ void store_global_word(void* to, uint2 word) {
  asm volatile("st.global.v2.b32 [%0], {%1, %2};" ::"l"(to), "r"(word.x), "r"(word.y) : "memory");
}
__device__ __forceinline__ void store_global_word(void* to, uint4 word) {
  asm volatile("st.global.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"(to), "r"(word.x), "r"(word.y),
               "r"(word.z), "r"(word.w)
               : "memory");
}

template <class V>
__device__ __forceinline__ void store_global_if(V* to, const V& value, bool inside) {
  if (inside) store_global_word(to, to_word(value));
}

// Shared memory.
__device__ __forceinline__ unsigned char* dynamic_shared_memory() {
  extern __shared__ __align__(128) unsigned char fastdw_dynamic_shared[];
  return fastdw_dynamic_shared;
}

template <class V>
__device__ __forceinline__ V load_shared(const V* from) {
  return from_word<V>(*reinterpret_cast<const Word<V>*>(from));
}

template <class V>
__device__ __forceinline__ void store_shared(V* to, const V& value) {
  *reinterpret_cast<Word<V>*>(to) = to_word(value);
}

template <class V>
__device__ __forceinline__ void store_shared_if(V* to, const V& value, bool inside) {
  if (inside) store_shared(to, value);
}

__device__ __forceinline__ uint32_t shared_address(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

// 16 bytes from global to shared memory behind the threads' backs; zeros where not inside. Both
// aligned to 16. They are there for this thread after commit and wait, for the others after a
// barrier.
__device__ __forceinline__ void copy_async(void* shared, const void* global, bool inside) {
  const int bytes = inside ? 16 : 0;
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(shared)),
               "l"(global), "r"(bytes)
               : "memory");
}

__device__ __forceinline__ void commit_copies() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}

// Waits until at most kPending of the committed groups are still under way.
template <int kPending>
__device__ __forceinline__ void wait_for_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

// Four 8x8 matrices of 2-byte elements (or 8x4 of 4 bytes); lane 8 j + r names row r of matrix j.
// Each row: 16 bytes, aligned. Lane 4 g + t gets the t-th 4 bytes of row g of each.
__device__ __forceinline__ void load_matrices(uint32_t (&parts)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(parts[0]), "=r"(parts[1]), "=r"(parts[2]), "=r"(parts[3])
               : "r"(shared_address(row))
               : "memory");
}

// d += a b, a 16x16, b 16x8, d 16x8: element i of d is row lane / 4 + 8 (i / 2), column
// 2 (lane % 4) + i % 2.
template <class T>
__device__ __forceinline__ void mma_16x8x16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0,
                                            uint32_t b1);

template <>
__device__ __forceinline__ void mma_16x8x16<__half>(float (&d)[4], const uint32_t (&a)[4],
                                                    uint32_t b0, uint32_t b1) {
  asm(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

template <>
__device__ __forceinline__ void mma_16x8x16<__nv_bfloat16>(float (&d)[4], const uint32_t (&a)[4],
                                                           uint32_t b0, uint32_t b1) {
  asm(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// The same with a 16x8 and b 8x8 in tf32: bits of floats that round_to_tf32 gave.
__device__ __forceinline__ void mma_16x8x8_tf32(float (&d)[4], const uint32_t (&a)[4], uint32_t b0,
                                                uint32_t b1) {
  asm(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Nearest, ties away from zero: 10 bits of mantissa.
__device__ __forceinline__ uint32_t round_to_tf32(uint32_t float_bits) {
  uint32_t rounded;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(rounded) : "f"(__uint_as_float(float_bits)));
  return rounded;
}

// The same value, of which the compiler knows nothing: what follows from it is computed where it is
// used, not once before a loop and then kept in registers that the loop needs.
__device__ __forceinline__ int recomputed(int value) {
  asm volatile("" : "+r"(value));
  return value;
}

// threadIdx.x, read anew for the same reason.
__device__ __forceinline__ int thread_index() {
  int index;
  asm volatile("mov.u32 %0, %%tid.x;" : "=r"(index));
  return index;
}

// Within 2 units in the last place where b <= 2^126; beyond that zero.
__device__ __forceinline__ float divide_quickly(float a, float b) { return __fdividef(a, b); }

// fminf and fmaxf drop a NaN; these hand it on, as torch's clamp does.
__device__ __forceinline__ float min_or_nan(float a, float b) {
  float result;
  asm("min.NaN.f32 %0, %1, %2;" : "=f"(result) : "f"(a), "f"(b));
  return result;
}

__device__ __forceinline__ float max_or_nan(float a, float b) {
  float result;
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(result) : "f"(a), "f"(b));
  return result;
}

// Two elements of 2 bytes at a time; a NaN passes.
template <class T>
__device__ __forceinline__ uint32_t clamp_pair(uint32_t pair, uint32_t low, uint32_t high);

template <>
__device__ __forceinline__ uint32_t clamp_pair<__half>(uint32_t pair, uint32_t low,
                                                       uint32_t high) {
  asm("max.NaN.f16x2 %0, %0, %1;" : "+r"(pair) : "r"(low));
  asm("min.NaN.f16x2 %0, %0, %1;" : "+r"(pair) : "r"(high));
  return pair;
}

template <>
__device__ __forceinline__ uint32_t clamp_pair<__nv_bfloat16>(uint32_t pair, uint32_t low,
                                                              uint32_t high) {
  asm("max.NaN.bf16x2 %0, %0, %1;" : "+r"(pair) : "r"(low));
  asm("min.NaN.bf16x2 %0, %0, %1;" : "+r"(pair) : "r"(high));
  return pair;
}

// Every kernel's first statement. Compiled for compute capability 9.0 or newer a kernel may be
// launched while the one in front of it still runs (programmatic dependent launch, CUDA C++
// Programming Guide 6.2.4.4): this waits until all that went before has ended and can be read. See
// launch.h.
__device__ __forceinline__ void wait_for_previous_launch() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// Where a thread block has little left to do: once all have come here, the next launch's may take
// their places.
__device__ __forceinline__ void let_next_launch_begin() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

// Counts this thread block in, after all that its threads wrote before the barrier before this
// call, and returns how many came earlier. The last one may read what the others wrote, with
// load_global_coherent, after a further barrier. Called by one thread.
__device__ __forceinline__ unsigned arrive(unsigned* counter) {
  __threadfence();
  const unsigned earlier = atomicAdd(counter, 1u);
  __threadfence();
  return earlier;
}

// Until so many thread blocks have counted themselves in: only for blocks that are surely running.
// Called by one thread, before a barrier.
__device__ __forceinline__ void wait_for_arrivals(const unsigned* counter, unsigned count) {
  while (*static_cast<const volatile unsigned*>(counter) < count) __nanosleep(64);
  __threadfence();
}

}  // namespace fastdw::cuda
