// y = x Wᵀ + bias + scaling · thin · Bᵀ for a few rows x, with W in four bits, read once and dequantized on the way.
//
// The weight is the wide side of a product of matrices 16 × 16 and 16 × 8 on tensor cores, up to 8 rows of x the narrow
// one. Every lane of a quad reads 8 bytes of one row: 64 weights of one scale, in an order along the inputs that x is
// read in too. Levels are multiplied, and sums over 64 weights scaled in fp32. Both weights of a byte come from a table
// of 256 pairs, of which each lane has a copy in a bank of its own.
//
// Shapes: x (rows, n_in); packed (n_out, n_in / 2); thin (rows, rank) fp32; lora_B (n_out, rank); y (rows, n_out).
// Defined outside: ROW_TILES (of 8 rows of x), OUT_TILES (of 16 outputs a block), HALF, DOUBLED, WIDE (factors in fp32).

typedef unsigned int u32;
typedef unsigned short u16;
typedef unsigned char u8;

#define WARPS 8
#define THREADS (WARPS * 32)
#define GROUP 4  // pieces of 64 weights of a row that a warp reads at once: a line of 128 bytes

__device__ __forceinline__ float up(u16 value) {
#if HALF
  float wide;
  asm("cvt.f32.f16 %0, %1;" : "=f"(wide) : "h"(value));
  return wide;
#else
  return __uint_as_float((u32)value << 16);
#endif
}

__device__ __forceinline__ u16 down(float value) {
  u16 narrow;
#if HALF
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(narrow) : "f"(value));
#else
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(narrow) : "f"(value));
#endif
  return narrow;
}

__device__ __forceinline__ void multiply(float (&c)[4], u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1) {
#if HALF
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
#else
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
#endif
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

__device__ __forceinline__ uint2 streamed(const u8* at) {
  uint2 value;
  asm("ld.global.nc.L1::no_allocate.L2::128B.v2.u32 {%0,%1}, [%2];" : "=r"(value.x), "=r"(value.y) : "l"(at));
  return value;
}

// the pair of levels of byte `which` of four; `own` is where the lane's copy of the table begins
__device__ __forceinline__ u32 pair(const u8* own, u32 bytes, int which) {
  u32 at = which == 0 ? bytes << 7 : bytes >> (8 * which - 7);
  return *(const u32*)(own + (at & 0x7f80));
}

// what a warp reads ahead: weights, and of the lane's piece of each row what its scale is made of
struct Ahead {
  uint2 bytes[OUT_TILES][2][GROUP];
#if DOUBLED
  u32 code[OUT_TILES][2];
#endif
  float scale[OUT_TILES][2];
};

__device__ __forceinline__ void read(Ahead& ahead, const u8* packed, const void* absmax, const float* nested, int first,
                                     int group, int pieces, int n_out, int n_in, int shift, int lane) {
  int quad = lane & 3, own = min(group * GROUP + quad, pieces - 1);
#pragma unroll
  for (int tile = 0; tile < OUT_TILES; tile++)
#pragma unroll
    for (int half = 0; half < 2; half++) {
      size_t row = min(first + tile * 16 + half * 8 + (lane >> 2), n_out - 1);
      const u8* start = packed + row * (n_in >> 1) + quad * 8;
#pragma unroll
      for (int piece = 0; piece < GROUP; piece++)
        ahead.bytes[tile][half][piece] = streamed(start + min(group * GROUP + piece, pieces - 1) * 32);
      size_t block = (row * pieces + own) >> shift;
#if DOUBLED
      ahead.code[tile][half] = __ldg((const u8*)absmax + block);
      ahead.scale[tile][half] = __ldg(nested + (block >> 8));
#else
      ahead.scale[tile][half] = __ldg((const float*)absmax + block);
#endif
    }
}

extern "C" __global__ void __launch_bounds__(THREADS)
few_rows(const u16* __restrict__ x, const u8* __restrict__ packed, const void* __restrict__ absmax,
         const float* __restrict__ nested, const float* __restrict__ offset, const float* __restrict__ nested_levels,
         const u32* __restrict__ pairs, const u16* __restrict__ bias, const float* __restrict__ thin,
         const void* __restrict__ lora_B, u16* __restrict__ y, int rows, int n_out, int n_in, int shift, int rank,
         int scaling) {
  __shared__ __align__(16) u32 table[256 * 32];
#if DOUBLED
  __shared__ float second[256];
  float mean = __ldg(offset);
#endif
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, quad = lane & 3, in_quad = lane >> 2;
  const int first = blockIdx.x * 16 * OUT_TILES, pieces = n_in >> 6, groups = (pieces + GROUP - 1) / GROUP;

  Ahead ahead;
  if (warp < groups) read(ahead, packed, absmax, nested, first, warp, pieces, n_out, n_in, shift, lane);
  {
    u32 both = __ldg(pairs + threadIdx.x);
    uint4 four = make_uint4(both, both, both, both);
#pragma unroll
    // each thread begins elsewhere, so that those of a warp write to all banks
    for (int i = 0; i < 8; i++) ((uint4*)table)[threadIdx.x * 8 + ((i + threadIdx.x) & 7)] = four;
#if DOUBLED
    second[threadIdx.x] = __ldg(nested_levels + threadIdx.x);
#endif
  }
  __syncthreads();
  const u8* own = (const u8*)table + lane * 4;

  float sum[OUT_TILES][ROW_TILES][4];
#pragma unroll
  for (int tile = 0; tile < OUT_TILES; tile++)
#pragma unroll
    for (int t = 0; t < ROW_TILES; t++)
#pragma unroll
      for (int i = 0; i < 4; i++) sum[tile][t][i] = 0.f;

  for (int group = warp; group < groups; group += WARPS) {
    Ahead now = ahead;
    if (group + WARPS < groups) read(ahead, packed, absmax, nested, first, group + WARPS, pieces, n_out, n_in, shift, lane);
    float scale[OUT_TILES][2];
#pragma unroll
    for (int tile = 0; tile < OUT_TILES; tile++)
#pragma unroll
      for (int half = 0; half < 2; half++) {
        scale[tile][half] = now.scale[tile][half];
#if DOUBLED
        scale[tile][half] = __fadd_rn(__fmul_rn(second[now.code[tile][half]], now.scale[tile][half]), mean);
#endif
        // beyond the last piece the last is read again, and counts nothing
        if (group * GROUP + quad >= pieces) scale[tile][half] = 0.f;
      }
#pragma unroll
    for (int piece = 0; piece < GROUP; piece++) {
      int column = min(group * GROUP + piece, pieces - 1) * 64 + quad * 16;
      uint4 seen[ROW_TILES][2];
#pragma unroll
      for (int t = 0; t < ROW_TILES; t++) {
        int row = t * 8 + in_quad;
        seen[t][0] = seen[t][1] = make_uint4(0, 0, 0, 0);
        if (row < rows) {
          const uint4* at = (const uint4*)(x + (size_t)row * n_in + column);
          seen[t][0] = __ldg(at);
          seen[t][1] = __ldg(at + 1);
        }
      }
#pragma unroll
      for (int tile = 0; tile < OUT_TILES; tile++) {
        uint2 upper = now.bytes[tile][0][piece], lower = now.bytes[tile][1][piece];
        float part[ROW_TILES][4];
#pragma unroll
        for (int t = 0; t < ROW_TILES; t++) part[t][0] = part[t][1] = part[t][2] = part[t][3] = 0.f;
#pragma unroll
        for (int step = 0; step < 4; step++) {
          u32 up4 = step < 2 ? upper.x : upper.y, low4 = step < 2 ? lower.x : lower.y;
          u32 a0 = pair(own, up4, (step & 1) * 2), a2 = pair(own, up4, (step & 1) * 2 + 1);
          u32 a1 = pair(own, low4, (step & 1) * 2), a3 = pair(own, low4, (step & 1) * 2 + 1);
#pragma unroll
          for (int t = 0; t < ROW_TILES; t++) {
            uint4 words = seen[t][step >> 1];
            multiply(part[t], a0, a1, a2, a3, step & 1 ? words.z : words.x, step & 1 ? words.w : words.y);
          }
        }
        float above = __shfl_sync(~0u, scale[tile][0], (lane & 28) | piece);
        float below = __shfl_sync(~0u, scale[tile][1], (lane & 28) | piece);
#pragma unroll
        for (int t = 0; t < ROW_TILES; t++) {
          sum[tile][t][0] += above * part[t][0];
          sum[tile][t][1] += above * part[t][1];
          sum[tile][t][2] += below * part[t][2];
          sum[tile][t][3] += below * part[t][3];
        }
      }
    }
  }
  __syncthreads();
  // the table is done with: sums of each warp, (WARPS, 8 · ROW_TILES, 16 · OUT_TILES)
  float* sums = (float*)table;
  const int tall = 16 * OUT_TILES, narrow = 8 * ROW_TILES;
#pragma unroll
  for (int tile = 0; tile < OUT_TILES; tile++)
#pragma unroll
    for (int t = 0; t < ROW_TILES; t++)
#pragma unroll
      for (int i = 0; i < 4; i++)
        sums[(warp * narrow + t * 8 + quad * 2 + (i & 1)) * tall + tile * 16 + (i >> 1) * 8 + in_quad] = sum[tile][t][i];
  __syncthreads();
  for (int at = threadIdx.x; at < tall * narrow; at += THREADS) {
    int out = first + at % tall, row = at / tall;
    if (out >= n_out || row >= rows) continue;
    float total = 0.f;
#pragma unroll
    for (int w = 0; w < WARPS; w++) total += sums[w * narrow * tall + at];
    if (bias) total += up(bias[out]);
    if (rank) {
      const float* left = thin + (size_t)row * rank;
      float added = 0.f;
#if WIDE
      const float* right = (const float*)lora_B + (size_t)out * rank;
      for (int i = 0; i < rank; i++) added += left[i] * right[i];
#else
      const u16* right = (const u16*)lora_B + (size_t)out * rank;
      if (rank & 7) {
        for (int i = 0; i < rank; i++) added += left[i] * up(right[i]);
      } else {
        for (int i = 0; i < rank; i += 8) {
          uint4 eight = __ldg((const uint4*)(right + i));
          u32 words[4] = {eight.x, eight.y, eight.z, eight.w};
#pragma unroll
          for (int j = 0; j < 4; j++)
            added += left[i + 2 * j] * up((u16)(words[j] & 0xffff)) + left[i + 2 * j + 1] * up((u16)(words[j] >> 16));
        }
      }
#endif
      total += __int_as_float(scaling) * added;
    }
    y[(size_t)row * n_out + out] = down(total);
  }
}

// thin = x Aᵀ in fp32: a block for each row of A and 8 rows of x. Shapes: x (rows, n_in); lora_A (rank, n_in), n_in % 8 == 0.
extern "C" __global__ void __launch_bounds__(THREADS)
thin_product(const u16* __restrict__ x, const void* __restrict__ lora_A, float* __restrict__ thin, int rows, int n_in,
             int rank) {
  __shared__ float sums[WARPS][8];
  const int one = blockIdx.x, first = blockIdx.y * 8, lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
  float sum[8] = {0.f, 0.f, 0.f, 0.f, 0.f, 0.f, 0.f, 0.f};
  for (int column = threadIdx.x * 8; column < n_in; column += THREADS * 8) {
    float factor[8];
#if WIDE
    const float4* at = (const float4*)((const float*)lora_A + (size_t)one * n_in + column);
    float4 low = __ldg(at), high = __ldg(at + 1);
    factor[0] = low.x; factor[1] = low.y; factor[2] = low.z; factor[3] = low.w;
    factor[4] = high.x; factor[5] = high.y; factor[6] = high.z; factor[7] = high.w;
#else
    uint4 eight = __ldg((const uint4*)((const u16*)lora_A + (size_t)one * n_in + column));
    u32 words[4] = {eight.x, eight.y, eight.z, eight.w};
#pragma unroll
    for (int j = 0; j < 4; j++) {
      factor[2 * j] = up((u16)(words[j] & 0xffff));
      factor[2 * j + 1] = up((u16)(words[j] >> 16));
    }
#endif
#pragma unroll
    for (int row = 0; row < 8; row++)
      if (first + row < rows) {
        uint4 seen = __ldg((const uint4*)(x + (size_t)(first + row) * n_in + column));
        u32 of[4] = {seen.x, seen.y, seen.z, seen.w};
#pragma unroll
        for (int j = 0; j < 4; j++)
          sum[row] += factor[2 * j] * up((u16)(of[j] & 0xffff)) + factor[2 * j + 1] * up((u16)(of[j] >> 16));
      }
  }
#pragma unroll
  for (int row = 0; row < 8; row++) {
#pragma unroll
    for (int far = 16; far; far >>= 1) sum[row] += __shfl_xor_sync(~0u, sum[row], far);
    if (lane == 0) sums[warp][row] = sum[row];
  }
  __syncthreads();
  if (threadIdx.x < 8 && first + threadIdx.x < rows) {
    float total = 0.f;
#pragma unroll
    for (int w = 0; w < WARPS; w++) total += sums[w][threadIdx.x];
    thin[(size_t)(first + threadIdx.x) * rank + one] = total;
  }
}
