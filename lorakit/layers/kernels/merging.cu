// W + scaling · B · A for a weight W in four bits, which is read once, and the sum rounded once and written.
//
// B · A comes from tensor cores, 16 rows and 8 columns at a time. Which columns of the weight those eight are is free:
// they are taken so that what a lane gets of four such products is 8 columns side by side, one word of codes and one
// store. A strip of columns keeps its part of A in registers while a warp goes down the rows.
//
// Shapes: packed (rows, columns / 2); lora_A (rank, columns); lora_B (rows, rank); out (rows, columns); columns are
// whole blocks of 32. Defined outside: RANKS (rank / 16, rounded up), WHOLE (rank / 16 has no rest), PIECES (of 32
// columns, a strip), HALF (fp16, not bf16), DOUBLED.

typedef unsigned int u32;
typedef unsigned short u16;
typedef unsigned char u8;

#define WARPS 8
#define STRIP (PIECES * 32)
#define NESTED_SHIFT 8  // log2 of how many scales share a scale

__device__ __forceinline__ u32 narrowed(float first, float second) {
  u32 both;
#if HALF
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(second), "f"(first));
#else
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(second), "f"(first));
#endif
  return both;
}

__device__ __forceinline__ void multiply(float (&c)[4], const u32 (&a)[4], const u32 (&b)[2]) {
#if HALF
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
#else
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
#endif
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

__device__ __forceinline__ u32 two(const u16* first, const u16* second, bool has_first, bool has_second) {
  return (has_first ? (u32)*first : 0u) | (has_second ? (u32)*second << 16 : 0u);
}

// what 16 rows of a strip are read from: a lane has rows g and g + 8
struct Tile {
  u32 codes[2][PIECES];
#if DOUBLED
  u8 scales[2][PIECES];
#else
  float scales[2][PIECES];
#endif
};

extern "C" __global__ void __launch_bounds__(WARPS * 32)
merged(const u8* __restrict__ packed, const void* __restrict__ absmax, const float* __restrict__ nested_absmax,
       const float* __restrict__ nested_offset, const float* __restrict__ levels,
       const float* __restrict__ nested_levels, const u16* __restrict__ lora_A, const u16* __restrict__ lora_B,
       u16* __restrict__ out, int rows, int columns, int block_shift, int rank, int scaling_bits, int chunk) {
  __shared__ float table[16];
#if DOUBLED
  __shared__ float codes_of_scales[256];
  for (int at = threadIdx.x; at < 256; at += WARPS * 32) codes_of_scales[at] = nested_levels[at];
  const float offset = *nested_offset;
#endif
  if (threadIdx.x < 16) table[threadIdx.x] = levels[threadIdx.x];
  __syncthreads();
  const int lane = threadIdx.x & 31, g = lane >> 2, q = lane & 3;
  const int strip = blockIdx.x * STRIP;
  const int first = (blockIdx.y * WARPS + (threadIdx.x >> 5)) * chunk;
  const int end = min(first + chunk, rows);
  if (first >= rows) return;
  const int pieces = min(PIECES, (columns - strip) / 32);

#if RANKS
  const float scaling = __int_as_float(scaling_bits);
  // the narrow matrix A as tensor cores take it: of column g, the ranks 2q, 2q + 1, 2q + 8, 2q + 9 of each 16. Eight
  // columns side by side are read at once, of which this lane has the even or the odd ones
  u32 narrow[RANKS][4 * PIECES][2];
  const u32 own_half = g & 1 ? 0x7632 : 0x5410;
#pragma unroll
  for (int c = 0; c < PIECES; c++) {
    const size_t column = strip + 32 * c + 8 * (g >> 1);
#pragma unroll
    for (int t = 0; t < RANKS; t++)
#pragma unroll
      for (int half = 0; half < 2; half++) {
        const int k = 16 * t + 8 * half + 2 * q;
        const uint4 none = make_uint4(0u, 0u, 0u, 0u);
        const uint4 low = c < pieces && k < rank ? __ldg((const uint4*)(lora_A + (size_t)k * columns + column)) : none;
        const uint4 high =
            c < pieces && k + 1 < rank ? __ldg((const uint4*)(lora_A + (size_t)(k + 1) * columns + column)) : none;
        narrow[t][4 * c][half] = __byte_perm(low.x, high.x, own_half);
        narrow[t][4 * c + 1][half] = __byte_perm(low.y, high.y, own_half);
        narrow[t][4 * c + 2][half] = __byte_perm(low.z, high.z, own_half);
        narrow[t][4 * c + 3][half] = __byte_perm(low.w, high.w, own_half);
      }
  }
#endif

  auto read = [&](Tile& tile, int row) {
#pragma unroll
    for (int h = 0; h < 2; h++) {
      const int own = row + g + 8 * h;
#pragma unroll
      for (int c = 0; c < PIECES; c++) {
        const bool there = own < end && c < pieces;
        const size_t at = (size_t)own * columns + strip + 32 * c + 8 * q;
        tile.codes[h][c] = there ? __ldg((const u32*)(packed + (at >> 1))) : 0u;
#if DOUBLED
        tile.scales[h][c] = there ? __ldg((const u8*)absmax + (at >> block_shift)) : (u8)0;
#else
        tile.scales[h][c] = there ? __ldg((const float*)absmax + (at >> block_shift)) : 0.f;
#endif
      }
    }
  };

  Tile now, next;
  read(now, first);
  for (int row = first; row < end; row += 16) {
    if (row + 16 < end) read(next, row + 16);
#if RANKS
    u32 wide[RANKS][4];
#pragma unroll
    for (int t = 0; t < RANKS; t++)
#pragma unroll
      for (int part = 0; part < 4; part++) {
        const int own = row + g + 8 * (part & 1), k = 16 * t + 8 * (part >> 1) + 2 * q;
        const u16* at = lora_B + (size_t)own * rank + k;
#if WHOLE
        wide[t][part] = own < end ? __ldg((const u32*)at) : 0u;
#else
        wide[t][part] = two(at, at + 1, own < end && k < rank, own < end && k + 1 < rank);
#endif
      }
#endif
#pragma unroll
    for (int c = 0; c < PIECES; c++) {
      float scale[2];
#pragma unroll
      for (int h = 0; h < 2; h++) {
#if DOUBLED
        const size_t at = (size_t)(row + g + 8 * h) * columns + strip + 32 * c + 8 * q;
        const bool there = row + g + 8 * h < end && c < pieces;
        const float outer = there ? __ldg(nested_absmax + (at >> (block_shift + NESTED_SHIFT))) : 0.f;
        // rounded twice, as bitsandbytes does
        scale[h] = __fadd_rn(__fmul_rn(codes_of_scales[now.scales[h][c]], outer), offset);
#else
        scale[h] = now.scales[h][c];
#endif
      }
      u32 written[2][4];
#pragma unroll
      for (int i = 0; i < 4; i++) {
        float change[4] = {0.f, 0.f, 0.f, 0.f};
#if RANKS
#pragma unroll
        for (int t = 0; t < RANKS; t++) multiply(change, wide[t], narrow[t][4 * c + i]);
#endif
#pragma unroll
        for (int h = 0; h < 2; h++) {
          const u32 byte = now.codes[h][c] >> (8 * i);
          // the first of two weights lies in the high half
          float even = __fmul_rn(table[(byte >> 4) & 15], scale[h]), odd = __fmul_rn(table[byte & 15], scale[h]);
#if RANKS
          even = fmaf(scaling, change[2 * h], even);
          odd = fmaf(scaling, change[2 * h + 1], odd);
#endif
          written[h][i] = narrowed(even, odd);
        }
      }
#pragma unroll
      for (int h = 0; h < 2; h++) {
        const int own = row + g + 8 * h;
        if (own < end && c < pieces)
          *(uint4*)(out + (size_t)own * columns + strip + 32 * c + 8 * q) =
              make_uint4(written[h][0], written[h][1], written[h][2], written[h][3]);
      }
    }
    now = next;
  }
}
