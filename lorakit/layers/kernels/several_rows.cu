// y = x Wᵀ + bias + scaling · thin · Bᵀ for 9 to 64 rows of x: a block takes 128 outputs, 16 a warp, and a part of the
// inputs. x goes through shared memory, a chunk at a time; weights are looked up once for all rows. Where several blocks
// share outputs, the last of them adds their sums up, in the order of their parts.

#define STAGES 4
#define CHUNK (8 / ROW_TILES)  // pieces of x in a stage: 8 KiB, whatever the rows
#define CHUNKS (GROUP / CHUNK)
#define STAGE_WORDS 2048

__device__ __forceinline__ void copy(u32 to, const void* from, bool is_there) {
  int size = is_there ? 16 : 0;
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(size) : "memory");
}

__device__ __forceinline__ void commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }

__device__ __forceinline__ void arrived() { asm volatile("cp.async.wait_group %0;" ::"n"(STAGES - 2) : "memory"); }

// chunk number `chunk` of x into a stage: (CHUNK, 8 · ROW_TILES, 8) of 16 bytes, those of odd rows in swapped pairs
__device__ __forceinline__ void stage(u32* to, const u16* x, int chunk, int pieces, int rows, int n_in) {
#pragma unroll
  for (int i = 0; i < 2; i++) {
    int at = threadIdx.x + i * THREADS, eight = at & 7, row = (at >> 3) % (8 * ROW_TILES), piece = at / (64 * ROW_TILES);
    int column = within(chunk * CHUNK + piece, pieces) * 64 + eight * 8;
    const u16* from = x + (size_t)min(row, rows - 1) * n_in + column;
    copy(in_shared(to + ((at & ~7) | (eight ^ (row & 1))) * 4), from, row < rows);
  }
}

extern "C" __global__ void __launch_bounds__(THREADS, 2)
several_rows(const __grid_constant__ Members members, const u16* __restrict__ x,
             const float* __restrict__ nested_levels, const u32* __restrict__ pairs, u32* counters, float* partial,
             int rows, int n_in, int shift, int splits, int thin_blocks) {
  extern __shared__ __align__(128) u32 memory[];
  u32 *table = memory, *staged = memory + 256 * 32;
  float* second = (float*)(staged + STAGES * STAGE_WORDS);
  __shared__ bool is_last;
  if ((int)blockIdx.x < thin_blocks) {
    thin_product(members, x, (float*)table, blockIdx.x, rows, n_in);
    arrive(counters);
    leave(counters);
    return;
  }
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, quad = lane & 3, in_quad = lane >> 2;
  const int pieces = n_in >> 6, groups = (pieces + GROUP - 1) / GROUP, each = (groups + splits - 1) / splits;
  const int tile = (blockIdx.x - thin_blocks) / splits, split = (blockIdx.x - thin_blocks) % splits;
  const int begin = split * each, end = min(begin + each, groups);
  const Member& member = members.of[member_of_tile(members, tile)];
  const int first = (tile - member.first_tile) * 128;

  Source source;
  Ahead ahead;
  begin_at(source, member, first + warp * 16, pieces, lane);
  if (begin < end) read(ahead, member, source, begin, pieces, shift, lane);
#pragma unroll
  for (int i = 0; i < STAGES - 1; i++) {
    if (begin * CHUNKS + i < end * CHUNKS) stage(staged + i * STAGE_WORDS, x, begin * CHUNKS + i, pieces, rows, n_in);
    commit();
  }
  fill(table, pairs);
#if DOUBLED
  second[threadIdx.x] = __ldg(nested_levels + threadIdx.x);
#endif
  __syncthreads();
  const u32 own_levels = in_shared(table) + lane * 4;

  float sum[ROW_TILES][4];
#pragma unroll
  for (int t = 0; t < ROW_TILES; t++)
#pragma unroll
    for (int i = 0; i < 4; i++) sum[t][i] = 0.f;
  for (int group = begin; group < end; group++) {
    Ahead now = ahead;
    if (group + 1 < end) read(ahead, member, source, group + 1, pieces, shift, lane);
    float scale[2];
    scales(scale, now, second, group, pieces, quad);
#pragma unroll
    for (int part_of = 0; part_of < CHUNKS; part_of++) {
      int chunk = group * CHUNKS + part_of, behind = chunk + STAGES - 1;
      arrived();
      // all have that chunk, and are done with the one before it, whose stage is written next
      __syncthreads();
      if (behind < end * CHUNKS)
        stage(staged + (behind - begin * CHUNKS) % STAGES * STAGE_WORDS, x, behind, pieces, rows, n_in);
      commit();
      const uint4* seen = (const uint4*)(staged + (chunk - begin * CHUNKS) % STAGES * STAGE_WORDS);
#pragma unroll
      for (int inner = 0; inner < CHUNK; inner++) {
        const int piece = part_of * CHUNK + inner;
        u32 a[4][4];
        levels(a, own_levels, now.bytes[0][piece], now.bytes[1][piece]);
        float above = __shfl_sync(~0u, scale[0], (lane & 28) | piece);
        float below = __shfl_sync(~0u, scale[1], (lane & 28) | piece);
#pragma unroll
        for (int t = 0; t < ROW_TILES; t++) {
          const uint4* row = seen + ((inner * ROW_TILES + t) * 8 + in_quad) * 8;
          float part[4] = {0.f, 0.f, 0.f, 0.f};
          multiply_piece(part, a, row[(quad * 2) ^ (in_quad & 1)], row[(quad * 2 + 1) ^ (in_quad & 1)]);
          sum[t][0] += above * part[0];
          sum[t][1] += above * part[1];
          sum[t][2] += below * part[2];
          sum[t][3] += below * part[3];
        }
      }
    }
  }
  if (splits > 1) {
    float* all = partial + (size_t)tile * splits * ROW_TILES * 4 * THREADS + threadIdx.x;
    float* own = all + (size_t)split * ROW_TILES * 4 * THREADS;
#pragma unroll
    for (int t = 0; t < ROW_TILES; t++)
#pragma unroll
      for (int i = 0; i < 4; i++) own[(t * 4 + i) * THREADS] = sum[t][i];
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) {
      u32* done = counters + 2 + tile;
      __threadfence();
      is_last = atomicAdd(done, 1) == (u32)splits - 1;
      if (is_last) *done = 0;
      __threadfence();
    }
    __syncthreads();
    if (!is_last) {
      if (thin_blocks) leave(counters);
      return;
    }
#pragma unroll
    for (int t = 0; t < ROW_TILES; t++)
#pragma unroll
      for (int i = 0; i < 4; i++) sum[t][i] = 0.f;
    for (int from = 0; from < splits; from++)
#pragma unroll
      for (int t = 0; t < ROW_TILES; t++)
#pragma unroll
        for (int i = 0; i < 4; i++) sum[t][i] += __ldcg(all + ((size_t)from * ROW_TILES * 4 + t * 4 + i) * THREADS);
  }
  __syncthreads();
  // stages are done with: sums, (8 · ROW_TILES, 128)
  float* sums = (float*)staged;
#pragma unroll
  for (int t = 0; t < ROW_TILES; t++)
#pragma unroll
    for (int i = 0; i < 4; i++)
      sums[(t * 8 + quad * 2 + (i & 1)) * 128 + warp * 16 + (i >> 1) * 8 + in_quad] = sum[t][i];
  if (thin_blocks && threadIdx.x == 0) await(counters, thin_blocks);
  __syncthreads();
  for (int at = threadIdx.x; at < ROW_TILES * 1024; at += THREADS) {
    int out = first + at % 128, row = at / 128;
    if (out < member.n_out && row < rows) put(member, sums[at], row, out);
  }
  if (thin_blocks) leave(counters);
}
