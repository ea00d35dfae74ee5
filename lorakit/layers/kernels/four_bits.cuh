// What the products of few rows with four-bit weights share; it stands before each of their sources.
//
// The weight is the wide side of products of matrices 16 × 16 and 16 × 8 on tensor cores, 8 rows of x the narrow one.
// Every lane of a quad reads 8 bytes of one row: 64 weights of one scale, in an order along the inputs that x is read in
// too. Levels are multiplied, and sums over 64 weights scaled in fp32. Both weights of a byte come from a table of 256
// pairs, of which each lane has a copy in a bank of its own.
//
// Several weights that multiply one x are members of one launch. The first blocks compute thin = x Aᵀ of all members;
// the others wait for them where they need it, after their own sums. Blocks start in the order of their numbers.
//
// Shapes: x (rows, n_in); packed (n_out, n_in / 2); lora_A (rank, n_in); lora_B (n_out, rank); thin (rows, rank) fp32;
// y (rows, n_out). Defined outside: ROW_TILES (of 8 rows of x), HALF, DOUBLED, WIDE (factors in fp32), EVEN (rows are
// whole groups).

typedef unsigned int u32;
typedef unsigned short u16;
typedef unsigned char u8;

#define WARPS 8
#define THREADS (WARPS * 32)
#define GROUP 4  // pieces of 64 weights of a row that a warp reads at once: a line of 128 bytes
#define MEMBERS 4
#define THIN_TILES (ROW_TILES < 2 ? 1 : 2)  // of 8 rows of x that a block of the thin product takes

struct Member {
  const u8* packed;
  const void* absmax;
  const float* nested;
  const float* offset;
  const u16* bias;
  const void* lora_A;
  const void* lora_B;
  float* thin;
  u16* y;
  int n_out, first_tile, first_thin, rank;
  float scaling;
  int unused;
};

// those that are none begin after every tile
struct Members {
  Member of[MEMBERS];
};

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

__device__ __forceinline__ u32 acquired(const u32* at) {
  u32 value;
  asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(value) : "l"(at) : "memory");
  return value;
}

__device__ __forceinline__ u32 in_shared(const void* at) {
  u32 address;
  asm("{ .reg .u64 at; cvta.to.shared.u64 at, %1; cvt.u32.u64 %0, at; }" : "=r"(address) : "l"(at));
  return address;
}

__device__ __forceinline__ u32 from_shared(u32 address) {
  u32 value;
  asm volatile("ld.shared.u32 %0, [%1];" : "=r"(value) : "r"(address));
  return value;
}

// the pair of levels of byte `which` of four; `own` is where the lane's copy of the table begins
__device__ __forceinline__ u32 pair(u32 own, u32 bytes, int which) {
  return from_shared(__byte_perm(bytes, 0, 0x4440 + which) * 128 + own);
}

__device__ __forceinline__ void fill(u32* table, const u32* pairs) {
  u32 both = __ldg(pairs + threadIdx.x);
  uint4 four = make_uint4(both, both, both, both);
#pragma unroll
  // each thread begins elsewhere, so that those of a warp write to all banks
  for (int i = 0; i < 8; i++) ((uint4*)table)[threadIdx.x * 8 + ((i + threadIdx.x) & 7)] = four;
}

__device__ __forceinline__ int member_of_tile(const Members& members, int tile) {
  int which = 0;
#pragma unroll
  for (int i = 1; i < MEMBERS; i++)
    if (tile >= members.of[i].first_tile) which = i;
  return which;
}

// where the lane's two rows of 16 begin: bytes from the weight's first, with those of the lanes before it in the quad
struct Source {
  u32 offset[2];
#if DOUBLED
  float mean;
#endif
};

__device__ __forceinline__ void begin_at(Source& source, const Member& from, int first, int pieces, int lane) {
#pragma unroll
  for (int half = 0; half < 2; half++) {
    u32 row = min(first + half * 8 + (lane >> 2), from.n_out - 1);
    source.offset[half] = row * pieces * 32 + (lane & 3) * 8;
  }
#if DOUBLED
  source.mean = __ldg(from.offset);
#endif
}

// the last of a row's pieces, where rows are no whole groups
__device__ __forceinline__ int within(int piece, int pieces) { return EVEN ? piece : min(piece, pieces - 1); }

// what a warp reads ahead: weights of 16 rows, and of the lane's piece of two rows what its scale is made of
struct Ahead {
  uint2 bytes[2][GROUP];
#if DOUBLED
  u32 code[2];
  float mean;
#endif
  float scale[2];
};

__device__ __forceinline__ void read(Ahead& ahead, const Member& from, const Source& source, int group, int pieces,
                                     int shift, int lane) {
  int own = within(group * GROUP + (lane & 3), pieces);
#if DOUBLED
  ahead.mean = source.mean;
#endif
#pragma unroll
  for (int half = 0; half < 2; half++) {
    const u8* start = from.packed + source.offset[half];
    if (EVEN) start += group * GROUP * 32;
#pragma unroll
    for (int piece = 0; piece < GROUP; piece++)
      ahead.bytes[half][piece] = streamed(start + (EVEN ? piece : within(group * GROUP + piece, pieces)) * 32);
    u32 block = ((source.offset[half] >> 5) + own) >> shift;
#if DOUBLED
    ahead.code[half] = __ldg((const u8*)from.absmax + block);
    ahead.scale[half] = __ldg(from.nested + (block >> 8));
#else
    ahead.scale[half] = __ldg((const float*)from.absmax + block);
#endif
  }
}

__device__ __forceinline__ void scales(float (&scale)[2], const Ahead& now, const float* second, int group, int pieces,
                                       int quad) {
#pragma unroll
  for (int half = 0; half < 2; half++) {
    scale[half] = now.scale[half];
#if DOUBLED
    scale[half] = __fadd_rn(__fmul_rn(second[now.code[half]], now.scale[half]), now.mean);
#endif
    // beyond the last piece the last is read again, and counts nothing
    if (!EVEN && group * GROUP + quad >= pieces) scale[half] = 0.f;
  }
}

// the wide side of the four products of a piece
__device__ __forceinline__ void levels(u32 (&a)[4][4], u32 own, uint2 upper, uint2 lower) {
#pragma unroll
  for (int step = 0; step < 4; step++) {
    u32 above = step < 2 ? upper.x : upper.y, below = step < 2 ? lower.x : lower.y;
    a[step][0] = pair(own, above, (step & 1) * 2);
    a[step][1] = pair(own, below, (step & 1) * 2);
    a[step][2] = pair(own, above, (step & 1) * 2 + 1);
    a[step][3] = pair(own, below, (step & 1) * 2 + 1);
  }
}

__device__ __forceinline__ void multiply_piece(float (&part)[4], const u32 (&a)[4][4], uint4 left, uint4 right) {
  multiply(part, a[0][0], a[0][1], a[0][2], a[0][3], left.x, left.y);
  multiply(part, a[1][0], a[1][1], a[1][2], a[1][3], left.z, left.w);
  multiply(part, a[2][0], a[2][1], a[2][2], a[2][3], right.x, right.y);
  multiply(part, a[3][0], a[3][1], a[3][2], a[3][3], right.z, right.w);
}

// 16 values of a row of A in the dtype of x
__device__ __forceinline__ void factors(u32 (&words)[8], const void* lora_A, size_t at) {
#if WIDE
  const float4* from = (const float4*)((const float*)lora_A + at);
#pragma unroll
  for (int i = 0; i < 4; i++) {
    float4 four = __ldg(from + i);
    words[2 * i] = down(four.x) | (u32)down(four.y) << 16;
    words[2 * i + 1] = down(four.z) | (u32)down(four.w) << 16;
  }
#else
  const uint4* from = (const uint4*)((const u16*)lora_A + at);
#pragma unroll
  for (int i = 0; i < 2; i++) {
    uint4 eight = __ldg(from + i);
    words[4 * i] = eight.x;
    words[4 * i + 1] = eight.y;
    words[4 * i + 2] = eight.z;
    words[4 * i + 3] = eight.w;
  }
#endif
}

// thin = x Aᵀ of 16 rows of one member's A and 8 · THIN_TILES rows of x; `sums` has WARPS · 128 · THIN_TILES floats
__device__ __forceinline__ void thin_product(const Members& members, const u16* x, float* sums, int block, int rows,
                                             int n_in) {
  int which = 0;
#pragma unroll
  for (int i = 1; i < MEMBERS; i++)
    if (block >= members.of[i].first_thin) which = i;
  const Member& from = members.of[which];
  const int across = (ROW_TILES + THIN_TILES - 1) / THIN_TILES, rank = from.rank, own = block - from.first_thin;
  const int top = own / across * 16, first = own % across * 8 * THIN_TILES;
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, quad = lane & 3, in_quad = lane >> 2;
  float sum[THIN_TILES][4];
#pragma unroll
  for (int t = 0; t < THIN_TILES; t++)
#pragma unroll
    for (int i = 0; i < 4; i++) sum[t][i] = 0.f;
  size_t above = (size_t)min(top + in_quad, rank - 1) * n_in, below = (size_t)min(top + 8 + in_quad, rank - 1) * n_in;
#pragma unroll 2
  for (int piece = warp; piece < n_in >> 6; piece += WARPS) {
    int column = piece * 64 + quad * 16;
    u32 upper[8], lower[8], a[4][4];
    factors(upper, from.lora_A, above + column);
    factors(lower, from.lora_A, below + column);
#pragma unroll
    for (int step = 0; step < 4; step++) {
      a[step][0] = upper[2 * step];
      a[step][1] = lower[2 * step];
      a[step][2] = upper[2 * step + 1];
      a[step][3] = lower[2 * step + 1];
    }
#pragma unroll
    for (int t = 0; t < THIN_TILES; t++) {
      int row = first + t * 8 + in_quad;
      uint4 left = make_uint4(0, 0, 0, 0), right = left;
      if (row < rows) {
        const uint4* at = (const uint4*)(x + (size_t)row * n_in + column);
        left = __ldg(at);
        right = __ldg(at + 1);
      }
      multiply_piece(sum[t], a, left, right);
    }
  }
#pragma unroll
  for (int t = 0; t < THIN_TILES; t++)
#pragma unroll
    for (int i = 0; i < 4; i++)
      sums[(warp * 8 * THIN_TILES + t * 8 + quad * 2 + (i & 1)) * 16 + (i >> 1) * 8 + in_quad] = sum[t][i];
  __syncthreads();
  for (int at = threadIdx.x; at < 128 * THIN_TILES; at += THREADS) {
    int one = top + at % 16, row = first + at / 16;
    if (one >= rank || row >= rows) continue;
    float total = 0.f;
#pragma unroll
    for (int w = 0; w < WARPS; w++) total += sums[w * 128 * THIN_TILES + at];
    from.thin[(size_t)row * rank + one] = total;
  }
}

// counters[0]: blocks whose thin products are there; counters[1]: blocks that need them no more. Both end as they began.
__device__ __forceinline__ void arrive(u32* counters) {
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) {
    __threadfence();
    atomicAdd(counters, 1);
  }
}

// by one thread, with the block's others waiting for it afterwards
__device__ __forceinline__ void await(const u32* counters, int thin_blocks) {
  while (acquired(counters) < (u32)thin_blocks) asm volatile("nanosleep.u32 64;");
}

__device__ __forceinline__ void leave(u32* counters) {
  __syncthreads();
  if (threadIdx.x == 0 && atomicAdd(counters + 1, 1) == gridDim.x - 1) {
    counters[0] = counters[1] = 0;
    __threadfence();
  }
}

// an output with what is added to its sum
__device__ __forceinline__ void put(const Member& to, float total, int row, int out) {
  if (to.bias) total += up(__ldg(to.bias + out));
  int rank = to.rank;
  if (rank) {
    const float* left = to.thin + (size_t)row * rank;
    float added = 0.f;
#if WIDE
    const float* right = (const float*)to.lora_B + (size_t)out * rank;
    for (int i = 0; i < rank; i++) added += left[i] * __ldg(right + i);
#else
    const u16* right = (const u16*)to.lora_B + (size_t)out * rank;
    if (rank & 7) {
      for (int i = 0; i < rank; i++) added += left[i] * up(__ldg(right + i));
    } else {
      for (int i = 0; i < rank; i += 8) {
        uint4 eight = __ldg((const uint4*)(right + i));
        float4 low = *(const float4*)(left + i), high = *(const float4*)(left + i + 4);
        added += low.x * up((u16)(eight.x & 0xffff)) + low.y * up((u16)(eight.x >> 16));
        added += low.z * up((u16)(eight.y & 0xffff)) + low.w * up((u16)(eight.y >> 16));
        added += high.x * up((u16)(eight.z & 0xffff)) + high.y * up((u16)(eight.z >> 16));
        added += high.z * up((u16)(eight.w & 0xffff)) + high.w * up((u16)(eight.w >> 16));
      }
    }
#endif
    total += to.scaling * added;
  }
  to.y[(size_t)row * to.n_out + out] = down(total);
}
