# shellcheck shell=bash
# Narration and checks: what the demo shows, and how it counts what is right and what is not.

# Lines of a command's output that are shown when no SHOW pattern picks them.
readonly EXCERPT_LINES=6
readonly POLL_INTERVAL=0.05

checks=0
failures=0
OUT=''
RC=0

if [[ -t 1 && -z ${NO_COLOR:-} ]]; then
  readonly BOLD=$'\e[1m' DIM=$'\e[2m' GREEN=$'\e[32m' RED=$'\e[31m' PLAIN=$'\e[0m'
else
  readonly BOLD='' DIM='' GREEN='' RED='' PLAIN=''
fi

title() { printf '\n%s%s%s\n' "$BOLD" "$*" "$PLAIN"; }
say() { printf '  %s\n' "$@"; }

# short TEXT: the paths of this run by their names.
short() {
  local text=${1//"$WORK"/\$WORK}
  printf '%s' "${text//"$ROOT/"/}"
}

# show WHO COMMAND...: the command as one would type it, in front of it who runs it.
show() {
  local who=$1 line='' word
  shift
  for word; do
    if [[ ! $word =~ ^[A-Za-z0-9_@%+=:,./~-]+$ && $word != '&' ]]; then
      word="'${word//\'/\'\\\'\'}'"
    fi
    line+=" $word"
  done
  printf '  %s%s$%s%s\n' "$BOLD" "$who" "$(short "$line")" "$PLAIN"
}

# excerpt: the lines of OUT that match SHOW, or its first few; the working directory as $WORK.
excerpt() {
  local text
  text=$(short "$OUT")
  if [[ -n ${SHOW:-} ]]; then
    text=$(grep -E -- "$SHOW" <<<"$text") || text='(no line of the output is what was looked for)'
  fi
  local -a lines
  mapfile -t lines <<<"$text"
  printf "    $DIM%s$PLAIN\n" "${lines[@]:0:EXCERPT_LINES}"
  if ((${#lines[@]} > EXCERPT_LINES)); then
    printf '    %s(%d more lines)%s\n' "$DIM" $((${#lines[@]} - EXCERPT_LINES)) "$PLAIN"
  fi
}

# run WHO COMMAND...: shows the command, runs it as as_WHO does, shows its output.
# Leaves the whole output in OUT and the exit status in RC.
run() {
  show "$@"
  quietly "$@"
  if [[ -n $OUT ]]; then
    excerpt
  fi
}

# quietly WHO COMMAND...: like run, but shows nothing.
quietly() {
  local who=$1
  shift
  RC=0
  OUT=$("as_$who" "$@" 2>&1) || RC=$?
}

# check DESCRIPTION COMMAND...: counts, and says whether the command succeeded.
check() {
  local description=$1
  shift
  checks=$((checks + 1))
  if "$@"; then
    printf '  %sok%s      %s\n' "$GREEN" "$PLAIN" "$description"
  else
    failures=$((failures + 1))
    printf '  %sFAILED%s  %s\n' "$RED" "$PLAIN" "$description"
    printf '          exit status %d, output: %s\n' "$RC" "$(tail -n 5 <<<"$OUT")"
  fi
}

# within SECONDS COMMAND...: tries the command until it succeeds or the time is over.
within() {
  local deadline=$((${EPOCHREALTIME/./} + $1 * 1000000))
  shift
  until "$@"; do
    if ((${EPOCHREALTIME/./} > deadline)); then
      return 1
    fi
    sleep "$POLL_INTERVAL"
  done
}

# Conditions on the last command that was run.
succeeds() { ((RC == 0)); }
says() { grep -qE -- "$1" <<<"$OUT"; }
says_exactly() { ((RC == 0)) && [[ $OUT == "$1" ]]; }
is_vip() { ((RC == 0)) && [[ $OUT =~ ^240\.240\.[0-9]+\.[0-9]+$ ]]; }
is_vip6() { ((RC == 0)) && [[ $OUT =~ ^2001:2:0?:[0-9a-f:]+$ || $OUT =~ ^2001:2::[0-9a-f:]*$ ]]; }
is_number_above() { [[ $1 =~ ^[0-9]+$ ]] && (($1 > $2)); }
