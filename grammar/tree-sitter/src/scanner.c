// What no regular expression tells: whether the end of a line ends a statement, and where a number ends.

#include "tree_sitter/alloc.h"
#include "tree_sitter/parser.h"

// GOES_ON is never found: it is valid behind a comma. STRAY is never valid: a line that ends too early is an error.
enum Token { END, GOES_ON, STRAY, LPAR, RPAR, LSQB, RSQB, INDEX, NUMBER, INTEGER, COMMENT };

// How many brackets are open; within them the end of a line says nothing
typedef struct {
  uint16_t depth;
} Scanner;

void *tree_sitter_lora_external_scanner_create(void) { return ts_calloc(1, sizeof(Scanner)); }

void tree_sitter_lora_external_scanner_destroy(void *payload) { ts_free(payload); }

unsigned tree_sitter_lora_external_scanner_serialize(void *payload, char *buffer) {
  uint16_t depth = ((Scanner *)payload)->depth;
  buffer[0] = (char)(depth & 0xff);
  buffer[1] = (char)(depth >> 8);
  return 2;
}

void tree_sitter_lora_external_scanner_deserialize(void *payload, const char *buffer, unsigned length) {
  ((Scanner *)payload)->depth = length == 2 ? (uint8_t)buffer[0] | (uint8_t)buffer[1] << 8 : 0;
}

static bool is_blank(int32_t c) { return c == ' ' || c == '\t' || c == '\r' || c == '\f'; }

static bool is_digit(int32_t c) { return c >= '0' && c <= '9'; }

static bool is_word(int32_t c) {
  return is_digit(c) || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_' || c >= 0x80;
}

static void advance(TSLexer *lexer) { lexer->advance(lexer, false); }

static bool found(TSLexer *lexer, enum Token token) {
  lexer->result_symbol = token;
  return true;
}

static void digits(TSLexer *lexer) {
  while (is_digit(lexer->lookahead)) advance(lexer);
}

// Ends the token here if no letter follows, and says so
static bool ends(TSLexer *lexer) {
  if (is_word(lexer->lookahead)) return false;
  lexer->mark_end(lexer);
  return true;
}

// `2`, `0.05`, `2e-4`, `1%`, `24GiB`: as much of it as no letter follows
static bool number(TSLexer *lexer) {
  if (!is_digit(lexer->lookahead)) return false;
  digits(lexer);
  bool whole = ends(lexer);
  if (lexer->lookahead == '.') {
    advance(lexer);
    if (!is_digit(lexer->lookahead)) return whole;
    digits(lexer);
    whole = ends(lexer);
  }
  if (lexer->lookahead == 'e' || lexer->lookahead == 'E') {
    advance(lexer);
    if (lexer->lookahead == '+' || lexer->lookahead == '-') advance(lexer);
    if (!is_digit(lexer->lookahead)) return false;
    digits(lexer);
    whole = ends(lexer);
  }
  if (lexer->lookahead == '%') {
    advance(lexer);
    return ends(lexer) || whole;
  }
  if (lexer->lookahead == 'K' || lexer->lookahead == 'M' || lexer->lookahead == 'G' || lexer->lookahead == 'T') {
    advance(lexer);
    if (lexer->lookahead == 'i') advance(lexer);
    if (lexer->lookahead != 'B') return false;
  }
  if (lexer->lookahead == 'B') {
    advance(lexer);
    return ends(lexer);
  }
  return whole;
}

static bool integer(TSLexer *lexer) {
  if (lexer->lookahead == '-') advance(lexer);
  if (!is_digit(lexer->lookahead)) return false;
  digits(lexer);
  return ends(lexer);
}

// Skips blanks, and the ends of lines where a statement goes on; returns whether there were any
static bool skip(TSLexer *lexer, bool goes_on) {
  bool skipped = false;
  while (is_blank(lexer->lookahead) || (goes_on && lexer->lookahead == '\n')) {
    skipped = true;
    lexer->advance(lexer, true);
  }
  return skipped;
}

static bool end(TSLexer *lexer) {
  while (is_blank(lexer->lookahead) || lexer->lookahead == '\n' || lexer->lookahead == ';') advance(lexer);
  return found(lexer, END);
}

static bool comment(TSLexer *lexer) {
  while (lexer->lookahead != '\n' && !lexer->eof(lexer)) advance(lexer);
  return found(lexer, COMMENT);
}

static bool bracket(Scanner *scanner, TSLexer *lexer, enum Token token) {
  bool opens = token == LPAR || token == LSQB || token == INDEX;
  if (opens && scanner->depth < UINT16_MAX) scanner->depth++;
  if (!opens && scanner->depth > 0) scanner->depth--;
  advance(lexer);
  return found(lexer, token);
}

bool tree_sitter_lora_external_scanner_scan(void *payload, TSLexer *lexer, const bool *valid) {
  Scanner *scanner = payload;
  // everything is valid where the parser looks for a place to go on: the end of a line is the best there is
  bool lost = valid[STRAY];
  if (lost) scanner->depth = 0;
  bool apart = skip(lexer, scanner->depth > 0 || (valid[GOES_ON] && !lost));
  switch (lexer->lookahead) {
    case '\n':
      if (valid[END]) return end(lexer);
      advance(lexer);
      return found(lexer, STRAY);
    case ';':
      return valid[END] && end(lexer);
    case '#':
      return comment(lexer);
    case '(':
      return valid[LPAR] && bracket(scanner, lexer, LPAR);
    case ')':
      return valid[RPAR] && bracket(scanner, lexer, RPAR);
    case '[':
      if (valid[INDEX] && !apart) return bracket(scanner, lexer, INDEX);
      return valid[LSQB] && bracket(scanner, lexer, LSQB);
    case ']':
      return valid[RSQB] && bracket(scanner, lexer, RSQB);
    default:
      if (valid[NUMBER] && number(lexer)) return found(lexer, NUMBER);
      return valid[INTEGER] && integer(lexer) && found(lexer, INTEGER);
  }
}
