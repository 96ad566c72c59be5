#!/bin/sh
# Autograde collected submissions without running their code on this machine: autograde.sh SHEET [STUDENT ...]
# Run it in the course folder. nbgrader prepares and scores each submission here; in between, a container executes it.
set -u
export PYTHONWARNINGS=ignore

sheet=${1:?usage: autograde.sh SHEET [STUDENT ...]}
shift
if [ $# -eq 0 ]; then
    for folder in submitted/*/"$sheet"; do
        student=${folder#submitted/}
        set -- "$@" "${student%%/*}"
    done
fi

work=$PWD/isolated
owner=$(id -u):$(id -g)
[ "$owner" != 0:0 ] || owner=1000:1000

# Put the real tests back into the submission. A copy of the gradebook takes the meaningless marks of this step.
prepare() {
    cp gradebook.db "$work/scratch.db" &&
        nbgrader autograde "$sheet" --student="$1" --force --log-level=ERROR --db="sqlite:///$work/scratch.db" \
            --CourseDirectory.autograded_directory="$work/prepared" --Execute.enabled=False
}

# Execute it where it can do no harm. Without a complete run there is nothing to score: a test that was not executed
# would count as passed.
execute() {
    chown "$owner" "$2" &&
        timeout 1800 docker run --rm --network=none --read-only --tmpfs /tmp:size=512m \
            --memory=4g --memory-swap=4g --cpus=1 --pids-limit=256 --cap-drop=ALL --security-opt=no-new-privileges \
            --user "$owner" --volume "$1:/in:ro" --volume "$2:/out" \
            "${IMAGE:-refimpl-grader}" "/in/$sheet.ipynb" &&
        [ -f "$2/$sheet.ipynb" ]
}

score() {
    for file in "submitted/$1/$sheet"/*; do
        [ -e "$2/$(basename "$file")" ] || cp -R "$file" "$2/" || return 1
    done
    nbgrader autograde "$sheet" --student="$1" --force --log-level=ERROR \
        --CourseDirectory.submitted_directory="$work/executed" --Execute.enabled=False --ClearOutput.enabled=False
}

missing=0
for student; do
    ready=$work/prepared/$student/$sheet
    ran=$work/executed/$student/$sheet
    rm -rf "$ready" "$ran"
    mkdir -p "$ran"
    if { prepare "$student" && execute "$ready" "$ran" && score "$student" "$ran"; } >"$ran.log" 2>&1; then
        echo "$student: graded"
    else
        echo "$student: NOT GRADED, see $ran.log"
        missing=1
    fi
done
exit $missing
